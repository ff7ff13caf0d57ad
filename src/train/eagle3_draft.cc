// SPDX-License-Identifier: Apache-2.0
#include "train/eagle3_draft.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <cmath>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/random.h"
#include "draftflow/formats/model_folder.h"
#include "draftflow/model/bridge.h"
#include "draftflow/model/llama.h"

namespace draftflow {
namespace {

using Shape = std::vector<std::int64_t>;

at::Tensor read_checked(const ModelFolder& folder, const std::string& name, const Shape& shape) {
  const SafetensorsEntry* entry = folder.find(name);
  if (entry == nullptr) throw InvalidArgument(fmt::format("draft folder {} has no tensor '{}'", folder.path().string(), name));
  if (entry->shape != shape) {
    throw InvalidArgument(fmt::format("draft folder {}: tensor '{}' has shape {}, but config.json makes it {}",
                                      folder.path().string(), name, shape_text(entry->shape), shape_text(shape)));
  }
  return to_torch(folder.read(name));
}

at::Tensor read_used(const ModelFolder& folder, const DraftConfig& config) {
  const at::Tensor d2t = read_checked(folder, "d2t", {config.draft_vocab_size});
  const at::Tensor t2d = read_checked(folder, "t2d", {config.vocab_size});
  if (d2t.scalar_type() != at::kLong || t2d.scalar_type() != at::kBool) {
    throw InvalidArgument(fmt::format("draft folder {}: d2t must be int64 and t2d bool", folder.path().string()));
  }
  const at::Tensor used = d2t + at::arange(config.draft_vocab_size, at::kLong);
  if (!t2d.nonzero().flatten().equal(used)) {
    throw InvalidArgument(fmt::format("draft folder {}: t2d and d2t contradict each other", folder.path().string()));
  }
  return used;
}

}  // namespace

template <class Visit>
void Eagle3Draft::visit(const DraftConfig& c, Weights& w, Visit visit) {
  const std::int64_t h = c.hidden_size, q = c.num_attention_heads * c.head_dim, kv = c.num_key_value_heads * c.head_dim;
  visit("fc.weight", Shape{h, 3 * c.target_hidden_size}, w.fc);
  visit("midlayer.input_layernorm.weight", Shape{h}, w.input_norm);
  visit("midlayer.hidden_norm.weight", Shape{h}, w.hidden_norm);
  visit("midlayer.self_attn.q_proj.weight", Shape{q, 2 * h}, w.q);
  visit("midlayer.self_attn.k_proj.weight", Shape{kv, 2 * h}, w.k);
  visit("midlayer.self_attn.v_proj.weight", Shape{kv, 2 * h}, w.v);
  visit("midlayer.self_attn.o_proj.weight", Shape{h, q}, w.o);
  visit("midlayer.post_attention_layernorm.weight", Shape{h}, w.post_norm);
  visit("midlayer.mlp.gate_proj.weight", Shape{c.intermediate_size, h}, w.gate);
  visit("midlayer.mlp.up_proj.weight", Shape{c.intermediate_size, h}, w.up);
  visit("midlayer.mlp.down_proj.weight", Shape{h, c.intermediate_size}, w.down);
  visit("norm.weight", Shape{h}, w.norm);
  visit("lm_head.weight", Shape{c.draft_vocab_size, h}, w.head);
}

void Eagle3Draft::set_vocabulary(const at::Tensor& used) {
  used_ = used;
  t2d_ = at::zeros({config_.vocab_size}, at::kBool);
  t2d_.index_fill_(0, used_, true);
  const std::int64_t length = config_.max_position_embeddings;
  decode_rope_ = build_rope(config_.rope, length, length, embedding_.scalar_type());
}

Eagle3Draft Eagle3Draft::random(const DraftConfig& config, const VocabMap& map, const at::Tensor& embedding,
                                const at::Tensor& head, c10::ScalarType dtype, std::uint64_t seed) {
  if (embedding.size(1) != config.hidden_size) {
    throw InvalidArgument(fmt::format("the draft's hidden size {} must be the target's {}: the embedding is copied",
                                      config.hidden_size, embedding.size(1)));
  }
  Eagle3Draft draft;
  draft.config_ = config;
  draft.embedding_ = embedding.detach().to(dtype);
  draft.set_vocabulary(at::tensor(at::ArrayRef<std::int64_t>(map.used), at::kLong));
  Random random(seed);
  visit(config, draft.weights_, [&](const char*, const Shape& shape, at::Tensor& weight) {
    weight = at::ones(shape, at::kFloat);
    if (shape.size() == 2) {
      const double scale = 1.0 / std::sqrt(static_cast<double>(shape[1]));
      float* values = weight.data_ptr<float>();
      for (std::int64_t i = 0; i < weight.numel(); ++i) values[i] = static_cast<float>(random.normal() * scale);
    }
    weight = weight.to(dtype);
  });
  draft.weights_.head = head.detach().index_select(0, draft.used_).to(dtype).clone();
  return draft;
}

Eagle3Draft Eagle3Draft::load(const std::filesystem::path& path, const at::Tensor& embedding, c10::ScalarType dtype) {
  const ModelFolder folder(path);
  Eagle3Draft draft;
  draft.config_ = parse_draft_config(folder.config_json(), (path / "config.json").string());
  const DraftConfig& config = draft.config_;
  const bool own = folder.find("embed_tokens.weight") != nullptr;
  draft.embedding_ =
      (own ? read_checked(folder, "embed_tokens.weight", {config.vocab_size, config.hidden_size}) : embedding).to(dtype);
  if (draft.embedding_.size(0) != config.vocab_size || draft.embedding_.size(1) != config.hidden_size) {
    throw InvalidArgument(fmt::format("draft folder {} is for a target of {} tokens and width {}; this target has {} and {}",
                                      path.string(), config.vocab_size, config.hidden_size, draft.embedding_.size(0),
                                      draft.embedding_.size(1)));
  }
  draft.set_vocabulary(read_used(folder, config));
  visit(config, draft.weights_, [&](const char* name, const Shape& shape, at::Tensor& weight) {
    weight = read_checked(folder, name, shape).to(dtype, /*non_blocking=*/false, /*copy=*/true);
  });
  return draft;
}

void Eagle3Draft::save(const std::filesystem::path& folder) const {
  const at::NoGradGuard no_grad;
  TensorMap tensors;
  tensors.emplace_back("embed_tokens.weight", from_torch(embedding_));
  for (const auto& [name, weight] : parameters()) tensors.emplace_back(name, from_torch(weight));
  tensors.emplace_back("t2d", from_torch(t2d_));
  tensors.emplace_back("d2t", from_torch(used_ - at::arange(config_.draft_vocab_size, at::kLong)));
  const std::string dtype(dtype_name(from_torch_dtype(embedding_.scalar_type())));
  std::filesystem::path temporary = folder;
  temporary += ".tmp";
  std::filesystem::remove_all(temporary);
  try {
    make_folders(temporary);
    write_safetensors(temporary / "model.safetensors", tensors, {{"format", "pt"}});
    replace_file(temporary / "config.json", draft_config_to_json(config_, dtype));
    std::filesystem::remove_all(folder);
    std::filesystem::rename(temporary, folder);
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove_all(temporary, ignored);
    throw;
  }
  sync_folder(folder.parent_path());
}

NamedTensors Eagle3Draft::parameters() const {
  NamedTensors all;
  Weights shared = weights_;
  visit(config_, shared, [&](const char* name, const Shape&, at::Tensor& weight) { all.emplace_back(name, weight); });
  return all;
}

at::Tensor Eagle3Draft::project(const at::Tensor& aux) const {
  return at::linear(aux, weights_.fc);
}

at::Tensor Eagle3Draft::embed(const at::Tensor& ids) const {
  return at::embedding(embedding_, ids);
}

at::Tensor Eagle3Draft::logits(const at::Tensor& y) const {
  return at::linear(rms_norm(y, weights_.norm, config_.rms_norm_eps), weights_.head);
}

at::Tensor Eagle3Draft::normed_input(const at::Tensor& g, const at::Tensor& e) const {
  return at::cat(
      {rms_norm(e, weights_.input_norm, config_.rms_norm_eps), rms_norm(g, weights_.hidden_norm, config_.rms_norm_eps)}, -1);
}

at::Tensor Eagle3Draft::finish(const at::Tensor& g, const at::Tensor& attention) const {
  const at::Tensor u = g + at::linear(attention, weights_.o);
  const at::Tensor n = rms_norm(u, weights_.post_norm, config_.rms_norm_eps);
  return u + at::linear(at::silu(at::linear(n, weights_.gate)) * at::linear(n, weights_.up), weights_.down);
}

UnrollCache Eagle3Draft::start_unroll(std::int64_t length, int steps) const {
  UnrollCache cache;
  // Dynamic scaling takes one base for the whole unroll: the longest position any step reaches.
  const std::int64_t longest = std::max(config_.max_position_embeddings + 20, length + steps);
  cache.rope = build_rope(config_.rope, length + steps, longest, embedding_.scalar_type());
  cache.mask = causal_mask(0, length, length, embedding_.options());
  return cache;
}

at::Tensor Eagle3Draft::step(const at::Tensor& g, const at::Tensor& e, UnrollCache& cache) const {
  const std::int64_t b = g.size(0), t = g.size(1), d = config_.head_dim;
  const std::int64_t nk = config_.num_key_value_heads, group = config_.num_attention_heads / nk;
  const auto i = static_cast<std::int64_t>(cache.keys.size());
  const at::Tensor x = normed_input(g, e);
  const at::Tensor cos = cache.rope.cos.narrow(0, i, t), sin = cache.rope.sin.narrow(0, i, t);
  const at::Tensor q = apply_rope(split_heads(at::linear(x, weights_.q), d), cos, sin);
  cache.keys.push_back(apply_rope(split_heads(at::linear(x, weights_.k), d), cos, sin));
  cache.values.push_back(split_heads(at::linear(x, weights_.v), d));
  if (i == 0) return finish(g, attend(q, cache.keys[0], cache.values[0], cache.mask));

  // Queries that share a kv head are rows of one product against step 0's keys; each later step adds one column, the
  // product of a query with the key at its own position. One softmax over all of them.
  const double scale = 1.0 / std::sqrt(static_cast<double>(d));
  const auto wide = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor rows = q.reshape({b * nk, group * t, d});
  const at::Tensor k0 = cache.keys[0].reshape({b * nk, t, d}), v0 = cache.values[0].reshape({b * nk, t, d});
  std::vector<at::Tensor> columns{
      at::baddbmm(cache.mask.repeat({group, 1}).unsqueeze(0), rows, k0.transpose(1, 2), 1.0, scale)};
  const at::Tensor grouped = q.reshape({b, nk, group, t, d});
  for (std::size_t m = 1; m < cache.keys.size(); ++m) {
    columns.push_back(((grouped * cache.keys[m].unsqueeze(2)).sum(-1, /*keepdim=*/true) * scale).view({b * nk, group * t, 1}));
  }
  const at::Tensor weights = at::softmax(at::cat(columns, -1), -1, wide).to(q.scalar_type());
  at::Tensor mixed = at::bmm(weights.narrow(-1, 0, t), v0).view({b, nk, group, t, d});
  for (std::size_t m = 1; m < cache.values.size(); ++m) {
    const at::Tensor share = weights.narrow(-1, t + static_cast<std::int64_t>(m) - 1, 1).view({b, nk, group, t, 1});
    mixed = mixed + share * cache.values[m].unsqueeze(2);
  }
  return finish(g, mixed.view({b, nk * group, t, d}).transpose(1, 2).reshape({b, t, nk * group * d}));
}

KvCache Eagle3Draft::make_cache(std::int64_t capacity) const {
  return make_kv_cache(1, config_.num_key_value_heads, capacity, config_.head_dim, embedding_.options());
}

at::Tensor Eagle3Draft::decode(const at::Tensor& g, const at::Tensor& e, std::int64_t start, KvCache& cache) const {
  const std::int64_t t = g.size(1), d = config_.head_dim;
  const at::Tensor x = normed_input(g, e);
  const at::Tensor cos = decode_rope_.cos.narrow(0, start, t), sin = decode_rope_.sin.narrow(0, start, t);
  const at::Tensor q = apply_rope(split_heads(at::linear(x, weights_.q), d), cos, sin);
  cache.keys[0].narrow(2, start, t).copy_(apply_rope(split_heads(at::linear(x, weights_.k), d), cos, sin));
  cache.values[0].narrow(2, start, t).copy_(split_heads(at::linear(x, weights_.v), d));
  return finish(g, attend(q, cache.keys[0], cache.values[0], causal_mask(start, t, cache.capacity, x.options())));
}

}  // namespace draftflow
