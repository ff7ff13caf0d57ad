// SPDX-License-Identifier: Apache-2.0
//
// One training step in float64 against an outside program's: losses, metrics, norms, every gradient and every updated weight.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>

#include "draftflow/base/file.h"
#include "draftflow/formats/feature_file.h"
#include "draftflow/formats/safetensors.h"
#include "draftflow/model/bridge.h"
#include "testing/temp_folder.h"
#include "train/eagle3_step.h"
#include "train/target_head.h"

namespace draftflow {
namespace {

constexpr double kTolerance = 1e-9;

std::vector<TokenCount> count_all(const std::filesystem::path& folder) {
  std::map<std::int64_t, TokenCount> counts;
  std::int64_t row = 0;
  for (const auto& file : list_feature_files(folder)) {
    const TensorMap tensors = load_feature_file(file);
    const auto ids = find_tensor(tensors, "input_ids")->as<std::int64_t>();
    const auto mask = find_tensor(tensors, "loss_mask")->as<std::int64_t>();
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (mask[i] != 1) continue;
      counts.try_emplace(ids[i], TokenCount{ids[i], 0, row}).first->second.count++;
    }
    ++row;
  }
  std::vector<TokenCount> list;
  for (const auto& [token, count] : counts) list.push_back(count);
  return list;
}

LoadedSample load_sample(const std::filesystem::path& file, std::int64_t cut) {
  LoadedSample sample{.ref = {.sample_id = SampleId(file.filename().string()), .run_id = RunId("golden")}};
  for (const auto& [name, tensor] : load_feature_file(file)) {
    const at::Tensor whole = to_torch(tensor);
    sample.tensors.emplace_back(name, from_torch(whole.narrow(whole.dim() == 1 ? 0 : 1, 0, cut)));
  }
  return sample;
}

struct Golden {
  nlohmann::json step, arguments;
  std::map<std::string, at::Tensor> tensors;
};

Golden read_golden(const std::filesystem::path& folder, const std::string& name) {
  const auto report = nlohmann::json::parse(read_text_file(folder / ("L3_" + name + ".json")));
  Golden golden{report["steps"][0], report["arguments"], {}};
  for (const auto& [key, tensor] : read_safetensors(folder / ("L3_" + name + ".safetensors"))) {
    golden.tensors[key] = to_torch(tensor);
  }
  return golden;
}

double relative(const at::Tensor& found, const at::Tensor& wanted) {
  return ((found - wanted).norm() / wanted.norm()).item<double>();
}

void expect_list(const std::vector<double>& found, const nlohmann::json& wanted, const char* what) {
  ASSERT_EQ(found.size(), wanted.size()) << what;
  for (std::size_t i = 0; i < found.size(); ++i) {
    const double expected = wanted[i].get<double>();
    EXPECT_NEAR(found[i], expected, kTolerance * std::max(1.0, std::abs(expected))) << what << " of step " << i;
  }
}

// `batches`: how the two samples are cut into forward passes. The window's numbers must not depend on it.
void run_golden(const std::string& name, const std::vector<std::vector<int>>& batches, std::int64_t extra_padding = 0) {
  DRAFTFLOW_REQUIRE_REAL_DATA(folder, "eagle3-golden");
  DRAFTFLOW_REQUIRE_REAL_DATA(features, "features-torch");
  DRAFTFLOW_REQUIRE_REAL_DATA(model, "stories260k-hf");
  const Golden golden = read_golden(folder, name);
  const TargetHead target = load_target_head(model, at::kDouble);
  const Eagle3Draft draft = Eagle3Draft::load(folder / "draft0", target.embedding, at::kDouble);

  const VocabMap map = make_vocab_map(count_all(features), 128, 512);
  EXPECT_TRUE(draft.used().equal(at::tensor(at::ArrayRef<std::int64_t>(map.used), at::kLong)));

  const LoadedSample samples[2] = {load_sample(features / "0000.ckpt", 96), load_sample(features / "0001.ckpt", 64)};
  std::vector<Eagle3Batch> window;
  for (const auto& rows : batches) {
    std::vector<const LoadedSample*> members;
    for (const int row : rows) members.push_back(&samples[row]);
    Eagle3Batch batch = make_eagle3_batch(members, 2048, at::kDouble);
    batch.input_ids = at::constant_pad_nd(batch.input_ids, {0, extra_padding});
    batch.loss_mask = at::constant_pad_nd(batch.loss_mask, {0, extra_padding});
    batch.aux = at::constant_pad_nd(batch.aux, {0, 0, 0, extra_padding});
    batch.target_hidden = at::constant_pad_nd(batch.target_hidden, {0, 0, 0, extra_padding});
    window.push_back(batch);
  }
  NamedTensors parameters = draft.parameters();
  for (auto& [key, parameter] : parameters) parameter.requires_grad_(true);
  Optimizer optimizer(parameters, {.learning_rate = 1e-3, .warmup_ratio = 0.015, .total_steps = 200, .max_grad_norm = 0.5});

  WindowResult result =
      accumulate_window(draft, target.head, window, {.steps = 3}, loss_normalization_from_name(name), "golden");
  EXPECT_NEAR(result.total, golden.step["total_loss"].get<double>(), kTolerance * 10);
  expect_list(result.loss, golden.step["loss"], "loss");
  expect_list(result.accuracy, golden.step["accuracy"], "accuracy");
  expect_list(result.acceptance, golden.step["acceptance"], "acceptance");
  for (const auto& [key, parameter] : parameters) {
    EXPECT_LT(relative(parameter.grad(), golden.tensors.at("step0.grad." + key)), kTolerance) << key;
  }
  const OptimizerStep step = optimizer.step();
  EXPECT_NEAR(step.grad_norm, golden.step["global_norm"].get<double>(), kTolerance * 10);
  EXPECT_NEAR(step.clip_factor, golden.step["clip_factor"].get<double>(), kTolerance);
  EXPECT_NEAR(step.learning_rate, golden.step["learning_rate"].get<double>(), 1e-15);
  for (const auto& [key, parameter] : parameters) {
    EXPECT_LT(relative(parameter.detach(), golden.tensors.at("step0.weight." + key)), kTolerance) << key;
  }
}

TEST(Golden, TokensNormalization) {
  run_golden("tokens", {{0, 1}});
}
TEST(Golden, ReferenceNormalization) {
  run_golden("reference", {{0, 1}});
}
TEST(Golden, TokensDoNotDependOnHowTheWindowIsCut) {
  run_golden("tokens", {{0}, {1}});
}
TEST(Golden, TokensDoNotDependOnPadding) {
  run_golden("tokens", {{0, 1}}, 7);
}

}  // namespace
}  // namespace draftflow
