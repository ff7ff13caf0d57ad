// SPDX-License-Identifier: Apache-2.0
#include "draftflow/model/llama.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "draftflow/base/error.h"
#include "draftflow/base/random.h"
#include "draftflow/model/bridge.h"

namespace draftflow {
namespace {

using Shape = std::vector<std::int64_t>;

// Every weight's Hugging Face name, shape and place in the model: load, random and parameters all walk this one list.
template <class Visit>
void visit_weights(const LlamaConfig& c, std::vector<LlamaLayer>& layers, at::Tensor& embedding, at::Tensor& norm,
                   at::Tensor& head, Visit visit) {
  const std::int64_t h = c.hidden_size, q = c.num_attention_heads * c.head_dim, kv = c.num_key_value_heads * c.head_dim;
  visit("model.embed_tokens.weight", Shape{c.vocab_size, h}, embedding);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const std::string prefix = fmt::format("model.layers.{}.", i);
    LlamaLayer& layer = layers[i];
    visit(prefix + "input_layernorm.weight", Shape{h}, layer.input_norm);
    visit(prefix + "self_attn.q_proj.weight", Shape{q, h}, layer.q);
    visit(prefix + "self_attn.k_proj.weight", Shape{kv, h}, layer.k);
    visit(prefix + "self_attn.v_proj.weight", Shape{kv, h}, layer.v);
    visit(prefix + "self_attn.o_proj.weight", Shape{h, q}, layer.o);
    visit(prefix + "post_attention_layernorm.weight", Shape{h}, layer.post_norm);
    visit(prefix + "mlp.gate_proj.weight", Shape{c.intermediate_size, h}, layer.gate);
    visit(prefix + "mlp.up_proj.weight", Shape{c.intermediate_size, h}, layer.up);
    visit(prefix + "mlp.down_proj.weight", Shape{h, c.intermediate_size}, layer.down);
  }
  visit("model.norm.weight", Shape{h}, norm);
  if (!c.tie_word_embeddings) visit("lm_head.weight", Shape{c.vocab_size, h}, head);
}

at::Tensor read_weight(const ModelFolder& folder, const std::string& name, const Shape& shape, c10::ScalarType dtype) {
  const SafetensorsEntry* entry = folder.find(name);
  if (entry == nullptr) {
    throw InvalidArgument(
        fmt::format("model folder {} has no tensor '{}', which its config.json asks for", folder.path().string(), name));
  }
  if (entry->shape != shape) {
    throw InvalidArgument(fmt::format("model folder {}: tensor '{}' has shape {}, but config.json makes it {}",
                                      folder.path().string(), name, shape_text(entry->shape), shape_text(shape)));
  }
  const at::Tensor weight = to_torch(folder.read(name));
  if (!weight.is_floating_point()) {
    throw InvalidArgument(fmt::format("model folder {}: tensor '{}' is {}: float32, float16 and bfloat16 are allowed",
                                      folder.path().string(), name, dtype_name(entry->dtype)));
  }
  at::Tensor copy = weight.to(dtype, /*non_blocking=*/false, /*copy=*/true);
  if (!at::isfinite(copy).all().item<bool>()) {
    throw Corrupt(fmt::format("model folder {}: tensor '{}' holds NaN or infinity", folder.path().string(), name));
  }
  return copy;
}

// A config that names fewer layers than the file holds would run, as another model.
void check_no_more_layers(const ModelFolder& folder, std::int64_t layers) {
  const std::string next = fmt::format("model.layers.{}.", layers);
  for (const std::string& name : folder.names()) {
    if (name.starts_with(next)) {
      throw InvalidArgument(
          fmt::format("model folder {} holds tensor '{}', but config.json has num_hidden_layers {}: the two "
                      "are of different models",
                      folder.path().string(), name, layers));
    }
  }
}

at::Tensor swiglu(const LlamaLayer& layer, const at::Tensor& x) {
  return at::linear(at::silu(at::linear(x, layer.gate)) * at::linear(x, layer.up), layer.down);
}

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const at::Tensor wide = x.scalar_type() == at::kDouble ? x : x.to(at::kFloat);
  const at::Tensor scale = at::rsqrt(wide.square().mean(-1, /*keepdim=*/true) + eps);
  return weight * (wide * scale).to(x.scalar_type());
}

Llama Llama::load(const ModelFolder& folder, c10::ScalarType dtype) {
  Llama model;
  model.config_ = parse_llama_config(folder.config_json(), (folder.path() / "config.json").string());
  check_no_more_layers(folder, model.config_.num_hidden_layers);
  model.layers_.resize(static_cast<std::size_t>(model.config_.num_hidden_layers));
  visit_weights(model.config_, model.layers_, model.embedding_, model.final_norm_, model.head_,
                [&](const std::string& name, const Shape& shape, at::Tensor& weight) {
                  weight = read_weight(folder, name, shape, dtype);
                });
  if (model.config_.tie_word_embeddings) model.head_ = model.embedding_;
  const std::int64_t length = model.config_.max_position_embeddings;
  model.rope_ = build_rope(model.config_.rope, length, length, dtype);
  return model;
}

Llama Llama::random(const LlamaConfig& config, std::uint64_t seed) {
  Llama model;
  model.config_ = config;
  model.layers_.resize(static_cast<std::size_t>(config.num_hidden_layers));
  Random random(seed);
  const double residual = 0.02 / std::sqrt(2.0 * static_cast<double>(config.num_hidden_layers));
  visit_weights(config, model.layers_, model.embedding_, model.final_norm_, model.head_,
                [&](const std::string& name, const Shape& shape, at::Tensor& weight) {
                  weight = at::ones(shape, at::kFloat);
                  if (shape.size() == 1) return;
                  const bool output = name.find("o_proj") != std::string::npos || name.find("down_proj") != std::string::npos;
                  float* values = weight.data_ptr<float>();
                  for (std::int64_t i = 0; i < weight.numel(); ++i) {
                    values[i] = static_cast<float>(random.normal() * (output ? residual : 0.02));
                  }
                });
  if (config.tie_word_embeddings) model.head_ = model.embedding_;
  model.rope_ = build_rope(config.rope, config.max_position_embeddings, config.max_position_embeddings, at::kFloat);
  return model;
}

std::vector<std::pair<std::string, at::Tensor>> Llama::parameters() const {
  std::vector<std::pair<std::string, at::Tensor>> all;
  Llama copy = *this;  // shares the tensors
  visit_weights(config_, copy.layers_, copy.embedding_, copy.final_norm_, copy.head_,
                [&](const std::string& name, const Shape&, at::Tensor& weight) { all.emplace_back(name, weight); });
  return all;
}

void Llama::check_ids(const at::Tensor& ids, std::int64_t start, std::int64_t limit) const {
  if (ids.dim() != 2 || ids.scalar_type() != at::kLong || ids.numel() == 0) {
    throw InvalidArgument(fmt::format("token ids must be int64 [B, T] with at least one token, not {} {}",
                                      c10::toString(ids.scalar_type()), shape_text(ids.sizes().vec())));
  }
  if (start < 0 || start + ids.size(1) > limit) {
    throw InvalidArgument(
        fmt::format("{} tokens from position {} do not fit: at most {} positions are allowed", ids.size(1), start, limit));
  }
  const std::int64_t low = ids.min().item<std::int64_t>(), high = ids.max().item<std::int64_t>();
  if (low < 0 || high >= config_.vocab_size) {
    throw InvalidArgument(fmt::format("token id {} is outside the vocabulary of {}", low < 0 ? low : high, config_.vocab_size));
  }
}

at::Tensor Llama::attention(const LlamaLayer& layer, const at::Tensor& x, std::int64_t start, KvCache* cache,
                            std::size_t index) const {
  const std::int64_t t = x.size(1), d = config_.head_dim;
  const at::Tensor cos = rope_.cos.narrow(0, start, t), sin = rope_.sin.narrow(0, start, t);
  const at::Tensor q = apply_rope(split_heads(at::linear(x, layer.q), d), cos, sin);
  at::Tensor k = apply_rope(split_heads(at::linear(x, layer.k), d), cos, sin);
  at::Tensor v = split_heads(at::linear(x, layer.v), d);
  if (cache != nullptr) {
    cache->keys[index].narrow(2, start, t).copy_(k);
    cache->values[index].narrow(2, start, t).copy_(v);
    k = cache->keys[index];
    v = cache->values[index];
  }
  return at::linear(attend(q, k, v, causal_mask(start, t, k.size(2), x.options())), layer.o);
}

Llama::Output Llama::run(const at::Tensor& ids, std::int64_t start, KvCache* cache, const std::vector<int>& capture) const {
  Output out;
  out.captured.resize(capture.size());
  for (const int layer : capture) {
    if (layer < 0 || layer >= config_.num_hidden_layers) {
      throw InvalidArgument(
          fmt::format("layer {} cannot be captured: the target has layers 0 to {}", layer, config_.num_hidden_layers - 1));
    }
  }
  at::Tensor x = at::embedding(embedding_, ids);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const LlamaLayer& layer = layers_[i];
    x = x + attention(layer, rms_norm(x, layer.input_norm, config_.rms_norm_eps), start, cache, i);
    x = x + swiglu(layer, rms_norm(x, layer.post_norm, config_.rms_norm_eps));
    for (std::size_t j = 0; j < capture.size(); ++j) {
      if (static_cast<std::size_t>(capture[j]) == i) out.captured[j] = x;
    }
  }
  out.last_hidden = rms_norm(x, final_norm_, config_.rms_norm_eps);
  return out;
}

Llama::Output Llama::forward(const at::Tensor& ids, const std::vector<int>& capture_layers) const {
  check_ids(ids, 0, config_.max_position_embeddings);
  return run(ids, 0, nullptr, capture_layers);
}

Llama::Output Llama::forward_cached(const at::Tensor& ids, std::int64_t start, KvCache& cache,
                                    const std::vector<int>& capture_layers) const {
  check_ids(ids, start, std::min(cache.capacity, config_.max_position_embeddings));
  return run(ids, start, &cache, capture_layers);
}

KvCache Llama::make_cache(std::int64_t capacity) const {
  return make_kv_cache(config_.num_hidden_layers, config_.num_key_value_heads, capacity, config_.head_dim,
                       embedding_.options());
}

at::Tensor Llama::logits(const at::Tensor& last_hidden) const {
  return at::linear(last_hidden, head_);
}

}  // namespace draftflow
