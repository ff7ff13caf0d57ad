// SPDX-License-Identifier: Apache-2.0
#include "draftflow/train/pretrain.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <chrono>
#include <vector>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/random.h"
#include "draftflow/formats/safetensors.h"
#include "draftflow/model/bridge.h"
#include "draftflow/model/compute.h"
#include "draftflow/model/llama.h"
#include "train/optimizer.h"

namespace draftflow {
namespace {

at::Tensor read_tokens(const std::filesystem::path& file, const PretrainOptions& options) {
  const std::string bytes = read_text_file(file);
  const auto count = static_cast<std::int64_t>(bytes.size() / 2);
  if (count <= options.length + 1) {
    throw InvalidArgument(fmt::format("{} holds {} tokens: more than {} are needed", file.string(), count, options.length + 1));
  }
  at::Tensor ids = at::empty({count}, at::kLong);
  std::int64_t* out = ids.data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < count; ++i) {
    const auto low = static_cast<unsigned char>(bytes[static_cast<std::size_t>(2 * i)]);
    const auto high = static_cast<unsigned char>(bytes[static_cast<std::size_t>(2 * i + 1)]);
    out[i] = low | (high << 8);
  }
  return ids;
}

// `count` sequences of length + 1 tokens from random places, each with BOS in front as a prompt has it.
at::Tensor sequences(const at::Tensor& tokens, std::int64_t count, std::int64_t length, std::int64_t bos, Random& random) {
  std::vector<at::Tensor> rows;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto places = static_cast<std::uint64_t>(tokens.size(0) - length);
    rows.push_back(tokens.narrow(0, static_cast<std::int64_t>(random.below(places)), length + 1));
  }
  at::Tensor batch = at::stack(rows);
  batch.select(1, 0).fill_(bos);
  return batch;
}

at::Tensor next_token_loss(const Llama& model, const at::Tensor& rows) {
  const std::int64_t length = rows.size(1) - 1;
  const at::Tensor inputs = rows.narrow(1, 0, length).contiguous();
  const at::Tensor logits = model.logits(model.forward(inputs, {}).last_hidden);
  return at::cross_entropy_loss(logits.flatten(0, 1), rows.narrow(1, 1, length).flatten());
}

double held_out_loss(const Llama& model, const at::Tensor& tokens, std::int64_t length) {
  const at::NoGradGuard no_grad;
  Random random(99);  // the same sequences each time
  double total = 0;
  for (int i = 0; i < 4; ++i)
    total += next_token_loss(model, sequences(tokens, 16, length, model.config().bos_token_id, random)).item<double>();
  return total / 4;
}

void save(const Llama& model, const PretrainOptions& options) {
  TensorMap tensors;
  for (const auto& [name, weight] : model.parameters()) tensors.emplace_back(name, from_torch(weight.to(at::kBFloat16)));
  make_folders(options.out);
  write_safetensors(options.out / "model.safetensors", tensors, {{"format", "pt"}});
  replace_file(options.out / "config.json", read_text_file(options.config));
}

}  // namespace

void run_pretrain(const PretrainOptions& options, const std::function<void(const PretrainProgress&)>& on_progress) {
  set_up_compute(options.threads);
  const Llama model = Llama::random(parse_llama_config(read_text_file(options.config), options.config.string()), options.seed);
  const at::Tensor tokens = read_tokens(options.tokens, options), held_out = read_tokens(options.held_out, options);
  NamedTensors parameters = model.parameters();
  for (auto& [name, weight] : parameters) weight.requires_grad_(true);
  Optimizer optimizer(parameters, {.learning_rate = options.learning_rate,
                                   .warmup_ratio = 0.03,
                                   .total_steps = options.steps,
                                   .max_grad_norm = 1.0,
                                   .beta2 = 0.95,
                                   .weight_decay = options.weight_decay});
  Random random(options.seed + 1);
  double loss_sum = 0;
  std::int64_t loss_count = 0;
  auto since = std::chrono::steady_clock::now();
  for (std::int64_t step = 1; step <= options.steps; ++step) {
    const at::Tensor loss =
        next_token_loss(model, sequences(tokens, options.batch, options.length, model.config().bos_token_id, random));
    loss.backward();
    optimizer.step();
    loss_sum += loss.item<double>();
    ++loss_count;
    if (step % options.evaluate_every != 0 && step != options.steps) continue;
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - since;
    const double rate = static_cast<double>(loss_count * options.batch * options.length) / elapsed.count();
    on_progress({step, options.steps, loss_sum / static_cast<double>(loss_count),
                 held_out_loss(model, held_out, options.length), rate});
    save(model, options);
    loss_sum = 0;
    loss_count = 0;
    since = std::chrono::steady_clock::now();
  }
}

}  // namespace draftflow
