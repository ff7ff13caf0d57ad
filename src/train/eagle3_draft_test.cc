// SPDX-License-Identifier: Apache-2.0
#include "train/eagle3_draft.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include "draftflow/base/error.h"
#include "draftflow/formats/model_folder.h"
#include "testing/temp_folder.h"
#include "train/eagle3_batch.h"
#include "train/testing.h"

namespace draftflow {
namespace {

using testing_support::kHidden;
using testing_support::kVocab;
using testing_support::make_draft;

TEST(Eagle3Draft, SavesAndLoadsTheSameDraft) {
  const testing_support::TempFolder folder;
  const Eagle3Draft draft = make_draft(at::kFloat);
  draft.save(folder.path() / "draft");
  draft.save(folder.path() / "draft");  // replaces
  EXPECT_EQ(folder.list(), std::vector<std::string>{"draft"});
  const Eagle3Draft again = Eagle3Draft::load(folder.path() / "draft", {}, at::kFloat);
  const NamedTensors a = draft.parameters(), b = again.parameters();
  for (std::size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(a[i].second.equal(b[i].second)) << a[i].first;
  EXPECT_TRUE(again.used().equal(draft.used()));
  EXPECT_EQ(again.config().capture_layers, (std::vector<int>{1, 2, 3}));
}

TEST(Eagle3Draft, TheFolderIsWhatServersExpect) {
  const testing_support::TempFolder folder;
  make_draft(at::kFloat).save(folder.path() / "draft");
  const ModelFolder saved(folder.path() / "draft");
  EXPECT_EQ(saved.find("fc.weight")->shape, (std::vector<std::int64_t>{kHidden, 3 * kHidden}));
  EXPECT_EQ(saved.find("midlayer.self_attn.q_proj.weight")->shape, (std::vector<std::int64_t>{16, 2 * kHidden}));
  EXPECT_EQ(saved.find("t2d")->dtype, DType::kBool);
  const at::Tensor d2t = to_torch(saved.read("d2t"));  // an offset: target id = j + d2t[j]
  EXPECT_EQ(d2t[0].item<std::int64_t>(), 0);
  EXPECT_EQ(d2t[23].item<std::int64_t>(), kVocab - 24);
  EXPECT_NE(saved.config_json().find("\"LlamaForCausalLMEagle3\""), std::string::npos);
}

// Decoding one sequence step by step is the unroll: the same keys are in sight at the same positions.
TEST(Eagle3Draft, DecodingAgreesWithTheUnroll) {
  const at::NoGradGuard no_grad;
  const Eagle3Draft draft = make_draft(at::kDouble);
  const std::int64_t length = 9;
  const at::Tensor aux = at::randn({1, length, 3 * kHidden}, at::kDouble);
  const at::Tensor ids = at::randint(kVocab, {1, length}, at::kLong);
  UnrollCache unroll = draft.start_unroll(length, 3);
  const at::Tensor y0 = draft.step(draft.project(aux), draft.embed(ids), unroll);
  const at::Tensor ids1 = shift_left(ids), ids2 = shift_left(ids1);
  const at::Tensor y1 = draft.step(y0, draft.embed(ids1), unroll);
  const at::Tensor y2 = draft.step(y1, draft.embed(ids2), unroll);

  KvCache cache = draft.make_cache(16);
  const at::Tensor first = draft.decode(draft.project(aux.narrow(1, 0, 4)), draft.embed(ids.narrow(1, 0, 4)), 0, cache);
  EXPECT_TRUE(at::allclose(first, y0.narrow(1, 0, 4), 1e-10, 1e-12));
  // A chain of two from position 3, as after a verification that ended there.
  const at::Tensor chain1 = draft.decode(first.narrow(1, 3, 1), draft.embed(ids1.narrow(1, 3, 1)), 4, cache);
  EXPECT_TRUE(at::allclose(chain1, y1.narrow(1, 3, 1), 1e-10, 1e-12));
  const at::Tensor chain2 = draft.decode(chain1, draft.embed(ids2.narrow(1, 3, 1)), 5, cache);
  EXPECT_TRUE(at::allclose(chain2, y2.narrow(1, 3, 1), 1e-10, 1e-12));
  // The target has moved on: real features overwrite the chain.
  const at::Tensor rest = draft.decode(draft.project(aux.narrow(1, 4, 5)), draft.embed(ids.narrow(1, 4, 5)), 4, cache);
  EXPECT_TRUE(at::allclose(rest, y0.narrow(1, 4, 5), 1e-10, 1e-12));
}

std::string load_error(const std::filesystem::path& folder) {
  try {
    Eagle3Draft::load(folder, at::zeros({kVocab, kHidden}), at::kFloat);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Eagle3Draft, RefusesAFolderThatContradictsItself) {
  const testing_support::TempFolder folder;
  const Eagle3Draft draft = make_draft(at::kFloat);
  const auto path = folder.path() / "draft";
  const auto rewrite = [&](const std::function<void(std::string&, Tensor&)>& change) {
    draft.save(path);
    TensorMap tensors = read_safetensors(path / "model.safetensors");
    for (auto& [name, tensor] : tensors) change(name, tensor);
    write_safetensors(path / "model.safetensors", tensors);
  };
  rewrite([](std::string& name, Tensor&) {
    if (name == "fc.weight") name = "fc";
  });
  EXPECT_NE(load_error(path).find("has no tensor 'fc.weight'"), std::string::npos);
  rewrite([](std::string& name, Tensor& tensor) {
    if (name == "norm.weight") tensor = from_torch(at::ones({3}));
  });
  EXPECT_NE(load_error(path).find("'norm.weight' has shape [3], but config.json makes it [16]"), std::string::npos);
  rewrite([](std::string& name, Tensor& tensor) {
    if (name == "d2t") tensor = from_torch(at::ones({24}, at::kLong));
  });
  EXPECT_NE(load_error(path).find("t2d and d2t contradict each other"), std::string::npos);
  draft.save(path);
  replace_file(path / "config.json", testing_support::target_config());
  EXPECT_NE(load_error(path).find("is no EAGLE-3 draft"), std::string::npos);
}

}  // namespace
}  // namespace draftflow
