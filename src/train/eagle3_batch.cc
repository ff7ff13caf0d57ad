// SPDX-License-Identifier: Apache-2.0
#include "train/eagle3_batch.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "draftflow/model/bridge.h"

namespace draftflow {

at::Tensor shift_left(const at::Tensor& x) {
  at::Tensor out = at::zeros_like(x);
  const std::int64_t kept = x.size(1) - 1;
  if (kept > 0) out.narrow(1, 0, kept).copy_(x.narrow(1, 1, kept));
  return out;
}

Eagle3Batch make_eagle3_batch(const std::vector<const LoadedSample*>& samples, std::int64_t max_length, c10::ScalarType dtype) {
  Eagle3Batch batch;
  std::vector<const TensorMap*> rows;
  std::int64_t longest = 0;
  for (const LoadedSample* sample : samples) {
    if (sample->failure) continue;
    rows.push_back(&sample->tensors);
    longest = std::max(longest, std::min(find_tensor(sample->tensors, "input_ids")->shape[0], max_length));
  }
  batch.samples = static_cast<std::int64_t>(rows.size());
  if (batch.empty()) return batch;
  const auto count = batch.samples;
  const std::int64_t width = find_tensor(*rows[0], "hidden_state")->shape[2];
  batch.input_ids = at::zeros({count, longest}, at::kLong);
  batch.loss_mask = at::zeros({count, longest}, dtype == at::kDouble ? at::kDouble : at::kFloat);
  batch.aux = at::zeros({count, longest, 3 * width}, dtype);
  batch.target_hidden = at::zeros({count, longest, width}, dtype);
  for (std::int64_t b = 0; b < count; ++b) {
    const TensorMap& row = *rows[static_cast<std::size_t>(b)];
    const at::Tensor ids = to_torch(*find_tensor(row, "input_ids"));
    const std::int64_t t = std::min(ids.size(0), max_length);
    const auto put = [&](at::Tensor& into, const at::Tensor& from) { into[b].narrow(0, 0, t).copy_(from.narrow(0, 0, t)); };
    put(batch.input_ids, ids);
    put(batch.loss_mask, to_torch(*find_tensor(row, "loss_mask")));
    put(batch.aux, to_torch(*find_tensor(row, "aux_hidden_state"))[0]);
    put(batch.target_hidden, to_torch(*find_tensor(row, "hidden_state"))[0]);
    batch.loss_mask[b][t - 1] = 0;  // the last token has no successor
    batch.tokens += t;
  }
  batch.input_ids = shift_left(batch.input_ids);
  batch.target_hidden = shift_left(batch.target_hidden);
  return batch;
}

}  // namespace draftflow
