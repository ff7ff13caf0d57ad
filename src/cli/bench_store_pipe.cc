// SPDX-License-Identifier: Apache-2.0
//
// The row of two processes: one puts samples, the other gets and removes them. Its limit does the same with plain files.
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <memory>
#include <ostream>

#include "cli/bench.h"
#include "cli/bench_raw.h"
#include "draftflow/base/error.h"
#include "draftflow/formats/buffer_pool.h"

namespace draftflow::cli {
namespace {

const StoreId kStore("bench");
constexpr int kDepth = 4;        // samples that may wait
constexpr int kWarmSamples = 4;  // at the beginning, not timed

using Put = std::function<std::string(int)>;                // gives the message
using Take = std::function<void(const std::string&, int)>;  // of the message

void produce(int samples, int messages, int acknowledgements, const Put& put) {
  std::string ack;
  for (int i = 0; i < samples + kDepth; ++i) {
    if (i >= kDepth && !receive_message(acknowledgements, ack)) throw Unavailable("the consumer ended");
    if (i < samples) send_message(messages, put(i));
  }
}

// The seconds after the warm samples.
double consume(int samples, int messages, int acknowledgements, const Take& take) {
  std::chrono::steady_clock::time_point begin;
  std::string message;
  for (int i = 0; i < samples; ++i) {
    if (i == kWarmSamples) begin = std::chrono::steady_clock::now();
    if (!receive_message(messages, message)) throw Unavailable("the producer ended");
    take(message, i);
    send_message(acknowledgements, "");
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Makes the work of each process in that process.
double run_pair(int samples, const std::function<Put()>& make_put, const std::function<Take()>& make_take) {
  auto messages = make_pipe(), acknowledgements = make_pipe();
  ForkedChild producer([&] {
    messages.first.reset();
    acknowledgements.second.reset();
    produce(samples, messages.second.get(), acknowledgements.first.get(), make_put());
    return std::string();
  });
  ForkedChild consumer([&] {
    messages.second.reset();
    acknowledgements.first.reset();
    return fmt::format("{}", consume(samples, messages.first.get(), acknowledgements.second.get(), make_take()));
  });
  for (auto* both : {&messages, &acknowledgements}) {
    both->first.reset();
    both->second.reset();
  }
  const double seconds = std::stod(consumer.result());
  producer.result();
  return seconds;
}

double run_store(const std::filesystem::path& root, const TensorMap& sample, int samples) {
  const auto make_put = [&]() -> Put {
    const std::shared_ptr<FeatureStore> store = open_shared_dir_store(root, kStore, {});
    return [store, &sample](int i) {
      return sample_ref_to_json(store->put(sample, SampleId(fmt::format("sample-{}", i)), bench_metadata()));
    };
  };
  const auto make_take = [&]() -> Take {
    const std::shared_ptr<FeatureStore> store = open_shared_dir_store(root, kStore, {});
    return [store](const std::string& message, int) {
      const SampleRef ref = sample_ref_from_json(message);
      const Fetched fetched = store->get(ref);
      store->release(fetched.handle);
      store->remove(ref);
    };
  };
  return run_pair(samples, make_put, make_take);
}

double run_raw(const std::filesystem::path& root, const TensorMap& sample, int samples) {
  const Tensor& tensor = sample.front().second;
  const auto file = [&root](int i) { return root / fmt::format("raw-{}", i); };
  const auto make_put = [&]() -> Put {
    return [&, file](int i) {
      write_raw_file(file(i), tensor.bytes);
      return std::string("x");
    };
  };
  const auto make_take = [&]() -> Take {
    BufferPool pool(tensor.bytes.size());
    const auto buffer = pool.allocate(tensor.dtype, tensor.shape);
    return [buffer, file](const std::string&, int i) {
      read_raw_file(file(i), buffer.second);
      if (::unlink(file(i).c_str()) != 0) throw_errno(errno, "removing " + file(i).string());
    };
  };
  return run_pair(samples, make_put, make_take);
}

}  // namespace

std::vector<BenchRow> pipe_rows(const Bench& bench) {
  bench.progress << "pipe_64mib" << std::endl;
  const std::filesystem::path root = bench.disk / "pipe";
  create_shared_dir_store(root, kStore, {});
  const TensorMap sample = bench_sample(bench.sizes.large_bytes);
  const int timed = bench.sizes.pipe_samples, samples = timed + kWarmSamples;
  const auto medians = alternate(
      bench.sizes.pipe_repetitions, [&] { return std::vector{run_store(root, sample, samples)}; },
      [&] { return std::vector{run_raw(root, sample, samples)}; });
  const double bytes = static_cast<double>(bench.sizes.large_bytes) * timed;
  return {rate_row("pipe_64mib", bytes / 1e9, "GB/s", medians[0], ratio_at_least(0.8))};
}

}  // namespace draftflow::cli
