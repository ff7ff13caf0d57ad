// SPDX-License-Identifier: Apache-2.0
#include "draftflow/loader/prefetcher.h"

#include <fmt/format.h>

#include <chrono>

#include "draftflow/base/error.h"
#include "draftflow/base/interrupt.h"
#include "draftflow/base/text.h"
#include "loader/finite.h"

namespace draftflow {
namespace {

bool is_floating(DType dtype) {
  return dtype == DType::kBFloat16 || dtype == DType::kFloat16 || dtype == DType::kFloat32 || dtype == DType::kFloat64;
}

std::optional<std::string> check_tokens(const Tensor& ids, const Tensor& mask, std::int64_t vocab_size) {
  for (const auto* tensor : {&ids, &mask}) {
    if (tensor->dtype != DType::kInt64 || tensor->shape.size() != 1 || tensor->shape != ids.shape || ids.shape[0] < 1) {
      return fmt::format("input_ids and loss_mask must be int64 [T] with T >= 1: found {} {} and {} {}", dtype_name(ids.dtype),
                         shape_text(ids.shape), dtype_name(mask.dtype), shape_text(mask.shape));
    }
  }
  for (const std::int64_t id : ids.as<std::int64_t>()) {
    if (id < 0 || (vocab_size > 0 && id >= vocab_size)) {
      return fmt::format("input_ids holds token {}: {} are allowed", id,
                         vocab_size > 0 ? fmt::format("0 to {}", vocab_size - 1) : "0 and more");
    }
  }
  for (const std::int64_t value : mask.as<std::int64_t>()) {
    if (value != 0 && value != 1) return fmt::format("loss_mask holds {}: 0 and 1 are allowed", value);
  }
  return std::nullopt;
}

std::optional<std::string> check_hidden(const std::string& name, const Tensor& tensor, std::int64_t length,
                                        std::int64_t width) {
  const bool shaped = tensor.shape.size() == 3 && tensor.shape[0] == 1 && tensor.shape[1] == length;
  if (!is_floating(tensor.dtype) || !shaped || (width > 0 && tensor.shape[2] != width)) {
    return fmt::format("{} is {} {}: a floating type [1, {}, {}] is allowed", name, dtype_name(tensor.dtype),
                       shape_text(tensor.shape), length, width > 0 ? std::to_string(width) : "H");
  }
  if (const auto bad = find_not_finite(tensor)) return fmt::format("{} holds {} at element {}", name, bad->what, bad->element);
  return std::nullopt;
}

std::optional<std::string> check_finite(const TensorMap& tensors) {
  for (const auto& [name, tensor] : tensors) {
    if (const auto bad = find_not_finite(tensor))
      return fmt::format("{} holds {} at element {}", name, bad->what, bad->element);
  }
  return std::nullopt;
}

// A set captured from another target is one mistake, not a failure of each of its samples.
void check_width(const SampleRef& ref, const LoaderOptions& options) {
  const FeatureSpec* spec = ref.find_spec("hidden_state");
  if (options.hidden_size == 0 || spec == nullptr || spec->shape.size() != 3 || spec->shape[2] == options.hidden_size) return;
  throw InvalidArgument(
      fmt::format("sample '{}' holds hidden states of width {}, but the target given has width {}: name the target that the "
                  "features were captured from",
                  printable(ref.sample_id.str(), 80), spec->shape[2], options.hidden_size));
}

const LoaderOptions& checked(const LoaderOptions& options) {
  if (options.windows_ahead < 1) {
    throw InvalidArgument(fmt::format("windows_ahead is {}: 1 or more is allowed", options.windows_ahead));
  }
  return options;
}

}  // namespace

std::optional<std::string> check_eagle3_sample(const TensorMap& tensors, const LoaderOptions& options) {
  const Tensor* found[4];
  static constexpr const char* kNames[4] = {"input_ids", "loss_mask", "hidden_state", "aux_hidden_state"};
  for (int i = 0; i < 4; ++i) {
    found[i] = find_tensor(tensors, kNames[i]);
    if (found[i] == nullptr) return fmt::format("there is no tensor '{}'", kNames[i]);
  }
  if (auto wrong = check_tokens(*found[0], *found[1], options.vocab_size)) return wrong;
  const std::int64_t length = found[0]->shape[0];
  if (auto wrong = check_hidden("hidden_state", *found[2], length, options.hidden_size)) return wrong;
  return check_hidden("aux_hidden_state", *found[3], length, 3 * options.hidden_size);
}

Prefetcher::Prefetcher(WindowSource& source, FeatureStore& store, const LoaderOptions& options)
    : source_(source), store_(store), options_(checked(options)), thread_([this] { run(); }) {}

Prefetcher::~Prefetcher() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

LoadedAnswer Prefetcher::next(const std::atomic<bool>& stop, int timeout_ms) {
  const auto start = std::chrono::steady_clock::now();
  const auto deadline = start + std::chrono::milliseconds(timeout_ms);
  std::unique_lock lock(mutex_);
  // A signal handler cannot notify, so stop is looked at on a timer.
  while (ready_.empty() && !ended_ && !failure_ && !stop.load() && std::chrono::steady_clock::now() < deadline) {
    changed_.wait_for(lock, std::chrono::milliseconds(50));
    lock.unlock();  // a check may wait itself, for Python's lock say
    check_interrupt();
    lock.lock();
  }
  wait_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (stop.load()) return {};
  if (ready_.empty()) {
    if (failure_) std::rethrow_exception(failure_);
    return {.state = ended_ ? WindowState::kEndOfStream : WindowState::kWaiting, .window = std::nullopt};
  }
  LoadedAnswer answer{.state = WindowState::kWindow, .window = std::move(ready_.front())};
  ready_.pop_front();
  lock.unlock();
  changed_.notify_all();
  return answer;
}

LoadedWindow Prefetcher::load(const Window& window) {
  LoadedWindow loaded;
  loaded.number = window.number;
  for (const SampleRef& ref : window.refs) {
    check_width(ref, options_);
    LoadedSample sample{.ref = ref, .tensors = {}, .failure = std::nullopt};
    try {
      sample.tensors = store_.read(ref);
      sample.failure =
          options_.check == SampleCheck::kEagle3 ? check_eagle3_sample(sample.tensors, options_) : check_finite(sample.tensors);
    } catch (const Error& error) {
      // Passing failures (no memory, no descriptors, a hiccup of the disk) must not condemn a sound sample. InvalidArgument is
      // a file that is refused for what it holds.
      const ErrorKind kind = error.kind();
      if (kind != ErrorKind::kNotFound && kind != ErrorKind::kCorrupt && kind != ErrorKind::kInvalidArgument) throw;
      sample.failure = error.what();
    }
    if (sample.failure) sample.tensors.clear();
    loaded.samples.push_back(std::move(sample));
  }
  if (options_.prepare) options_.prepare(loaded);
  return loaded;
}

// For a second at most, after which time may have changed what the source says; in parts, so that closing is bounded.
void Prefetcher::wait_for_source(std::unique_lock<std::mutex>& lock) {
  constexpr int kPartMs = 100, kParts = 10;
  bool changed = false;
  for (int i = 0; i < kParts && !changed && !closing_; ++i) {
    lock.unlock();
    changed = source_.wait(kPartMs);
    lock.lock();
  }
}

void Prefetcher::run() {
  try {
    std::unique_lock lock(mutex_);
    while (!closing_) {
      if (ready_.size() >= static_cast<std::size_t>(options_.windows_ahead)) {
        changed_.wait(lock);
        continue;
      }
      lock.unlock();
      const WindowAnswer answer = source_.next();
      std::optional<LoadedWindow> loaded;
      if (answer.state == WindowState::kWindow) loaded = load(*answer.window);
      lock.lock();
      if (loaded) {
        ready_.push_back(std::move(*loaded));
        changed_.notify_all();
      } else if (answer.state == WindowState::kEndOfStream) {
        ended_ = true;
        changed_.notify_all();
        return;
      } else {
        wait_for_source(lock);
      }
    }
  } catch (...) {
    const std::lock_guard lock(mutex_);
    failure_ = std::current_exception();
    changed_.notify_all();
  }
}

}  // namespace draftflow
