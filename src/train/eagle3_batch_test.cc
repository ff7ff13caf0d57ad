// SPDX-License-Identifier: Apache-2.0
#include "train/eagle3_batch.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "train/testing.h"

namespace draftflow {
namespace {

using testing_support::make_sample;

TEST(Eagle3Batch, ShiftsPadsAndMasksTheLastToken) {
  const LoadedSample a = make_sample(1, 6), b = make_sample(2, 4);
  const Eagle3Batch batch = make_eagle3_batch({&a, &b}, 2048, at::kFloat);
  EXPECT_EQ(batch.tokens, 10);
  const at::Tensor ids = to_torch(*find_tensor(b.tensors, "input_ids"));
  EXPECT_TRUE(batch.input_ids[1].narrow(0, 0, 3).equal(ids.narrow(0, 1, 3)));
  EXPECT_EQ(batch.input_ids[1].narrow(0, 3, 3).sum().item<std::int64_t>(), 0);
  EXPECT_TRUE(batch.loss_mask.equal(at::tensor({1., 1., 1., 1., 1., 0., 1., 1., 1., 0., 0., 0.}, at::kFloat).view({2, 6})));
  const at::Tensor hidden = to_torch(*find_tensor(b.tensors, "hidden_state"))[0].to(at::kFloat);
  EXPECT_TRUE(batch.target_hidden[1].narrow(0, 0, 3).equal(hidden.narrow(0, 1, 3)));
  EXPECT_TRUE(batch.aux[1].narrow(0, 0, 4).equal(to_torch(*find_tensor(b.tensors, "aux_hidden_state"))[0].to(at::kFloat)));
}

TEST(Eagle3Batch, NeverChangesAStoredSample) {
  const LoadedSample sample = make_sample(1, 6);
  const at::Tensor before = to_torch(*find_tensor(sample.tensors, "loss_mask")).clone();
  make_eagle3_batch({&sample}, 4, at::kFloat);
  EXPECT_TRUE(to_torch(*find_tensor(sample.tensors, "loss_mask")).equal(before));
}

TEST(Eagle3Batch, CutsAndLeavesFailedSamplesOut) {
  LoadedSample a = make_sample(1, 6), failed = make_sample(2, 9);
  failed.failure = "unreadable";
  failed.tensors.clear();
  const Eagle3Batch batch = make_eagle3_batch({&failed, &a}, 5, at::kFloat);
  EXPECT_EQ(batch.samples, 1);
  EXPECT_EQ(batch.input_ids.sizes().vec(), (std::vector<std::int64_t>{1, 5}));
  EXPECT_EQ(batch.loss_mask.sum().item<float>(), 4.0F);
  EXPECT_TRUE(make_eagle3_batch({&failed}, 5, at::kFloat).empty());
}

}  // namespace
}  // namespace draftflow
