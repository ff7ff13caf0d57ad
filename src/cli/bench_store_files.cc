// SPDX-License-Identifier: Apache-2.0
//
// The rows of one process with few samples: 64 MiB ones, where bytes count, and 4 KiB ones, where calls count.
#include <fmt/format.h>

#include <memory>
#include <optional>
#include <ostream>

#include "cli/bench.h"
#include "cli/bench_raw.h"
#include "draftflow/base/error.h"
#include "draftflow/formats/buffer_pool.h"

namespace draftflow::cli {
namespace {

const StoreId kStore("bench");

std::unique_ptr<FeatureStore> make_store(const std::filesystem::path& root) {
  return create_shared_dir_store(root, kStore, {});
}

BenchRow put_row(const Bench& bench, const std::string& name, const std::filesystem::path& folder, const TensorMap& sample) {
  bench.progress << name << std::endl;
  const auto store = make_store(folder / "put");
  const std::span<const std::byte> bytes = sample.front().second.bytes;
  const std::filesystem::path file = folder / "put" / "raw";
  std::optional<SampleRef> last;
  int count = 0;
  const auto medians = alternate(
      bench.sizes.repetitions,
      [&] {
        if (last) store->remove(*last);
        const SampleId id(fmt::format("sample-{}", ++count));
        return std::vector{seconds_of([&] { last = store->put(sample, id, bench_metadata()); })};
      },
      [&] {
        std::filesystem::remove(file);
        return std::vector{seconds_of([&] { write_raw_file(file, bytes); })};
      });
  if (last) store->remove(*last);
  std::filesystem::remove(file);
  return rate_row(name, static_cast<double>(bytes.size()) / 1e9, "GB/s", medians[0], ratio_at_least(0.85));
}

BenchRow clone_row(const Bench& bench, const TensorMap& sample) {
  bench.progress << "get_clone_64mib" << std::endl;
  const std::filesystem::path root = bench.disk / "clone", file = root / "raw";
  const auto store = make_store(root);
  const std::span<const std::byte> bytes = sample.front().second.bytes;
  const SampleRef ref = store->put(sample, SampleId("sample"), bench_metadata());
  write_raw_file(file, bytes);
  BufferPool pool(bytes.size());
  const auto [warm, out] = pool.allocate(sample.front().second.dtype, sample.front().second.shape);
  const auto medians = alternate(
      bench.sizes.repetitions,
      [&] {
        std::optional<Fetched> fetched;
        const double seconds = seconds_of([&] { fetched = store->get(ref); });
        store->release(fetched->handle);
        return std::vector{seconds};
      },
      [&, to = out] { return std::vector{seconds_of([&] { read_raw_file(file, to); })}; });
  store->remove(ref);
  std::filesystem::remove(file);
  return rate_row("get_clone_64mib", static_cast<double>(bytes.size()) / 1e9, "GB/s", medians[0], ratio_at_least(0.85));
}

double zero_copy_seconds(FeatureStore& store, const SampleRef& ref, int times) {
  double seconds = 0;
  for (int i = 0; i < times; ++i) {
    std::optional<Fetched> fetched;
    seconds += seconds_of([&] { fetched = store.get(ref, {.zero_copy = true}); });
    store.release(fetched->handle);
  }
  return seconds / times;
}

BenchRow zero_copy_row(const Bench& bench, const TensorMap& sample) {
  bench.progress << "get_zero_copy_64mib_us" << std::endl;
  const std::filesystem::path root = bench.disk / "zero-copy";
  const auto store = make_store(root);
  const SampleRef large = store->put(sample, SampleId("large"), bench_metadata());
  const SampleRef medium = store->put(bench_sample(bench.sizes.medium_bytes), SampleId("medium"), bench_metadata());
  RawStore raw(root / kStore.str());
  const int times = bench.sizes.zero_copies;
  const auto raw_seconds = [&](const SampleRef& ref) {
    const RawNames names = raw_names(ref.sample_id.str(), ref.generation);
    double seconds = 0;
    for (int i = 0; i < times; ++i) raw.map_and_unmap(names, seconds);
    return seconds / times;
  };
  const auto medians = alternate(
      bench.sizes.repetitions,
      [&] {
        return std::vector{zero_copy_seconds(*store, large, times), zero_copy_seconds(*store, medium, times)};
      },
      [&] {
        return std::vector{raw_seconds(large), raw_seconds(medium)};
      });
  store->remove(large);
  store->remove(medium);
  return {"get_zero_copy_64mib_us", medians[0].value * 1e6, "us",
          medians[0].limit * 1e6,   value_at_most(200),     fmt::format("of 1 MiB: {:.1f} us", medians[1].value * 1e6)};
}

// One repetition of puts, gets and releases. Nothing is removed before the last one is over: ext4 does not give out the inode
// of a file deleted in the last minute, and a new file's search for another is then most of its cost (docs/dead-ends.md).
class SmallSamples {
 public:
  explicit SmallSamples(const Bench& bench)
      : count_(bench.sizes.small_samples),
        sample_(bench_sample(bench.sizes.small_bytes)),
        store_(make_store(root(bench))),
        raw_(root(bench) / kStore.str()) {
    const SampleRef ref = store_->put(sample_, SampleId("sample-0000001"), bench_metadata());
    file_.resize(raw_.size_of(raw_names(ref.sample_id.str(), ref.generation)), std::byte{1});
    store_->remove(ref);
  }

  std::vector<double> of_store() {
    std::vector<SampleId> ids;
    for (int i = 0; i < count_; ++i) ids.emplace_back(next_id());
    std::vector<SampleRef> refs;
    std::vector<FeatureHandle> handles;
    refs.reserve(ids.size());
    handles.reserve(ids.size());
    const PutMetadata metadata = bench_metadata();
    const std::vector<double> seconds{seconds_of([&] {
                                        for (const SampleId& id : ids) refs.push_back(store_->put(sample_, id, metadata));
                                      }),
                                      seconds_of([&] {
                                        for (const SampleRef& ref : refs) handles.push_back(store_->get(ref).handle);
                                      }),
                                      seconds_of([&] {
                                        for (const FeatureHandle& handle : handles) store_->release(handle);
                                      })};
    return seconds;
  }

  std::vector<double> of_raw() {
    std::vector<RawNames> all;
    for (int i = 0; i < count_; ++i) all.push_back(raw_names(next_id(), kGeneration));
    std::vector<std::byte> out(file_.size());
    const std::vector<double> seconds{seconds_of([&] {
                                        for (const RawNames& names : all) raw_.put(names, file_);
                                      }),
                                      seconds_of([&] {
                                        for (const RawNames& names : all) raw_.get(names, out);
                                      }),
                                      seconds_of([&] {
                                        for (const RawNames& names : all) raw_.release(names);
                                      })};
    return seconds;
  }

 private:
  static constexpr std::uint64_t kGeneration = (1ULL << 24) + 1;  // as long as a real one
  static std::filesystem::path root(const Bench& bench) { return bench.disk / "small"; }
  std::string next_id() { return fmt::format("sample-{:07}", ++last_id_); }

  const int count_;
  const TensorMap sample_;
  const std::unique_ptr<FeatureStore> store_;
  RawStore raw_;
  std::vector<std::byte> file_;
  int last_id_ = 1;
};

}  // namespace

std::vector<BenchRow> large_rows(const Bench& bench) {
  std::vector<BenchRow> rows;
  const TensorMap sample = bench_sample(bench.sizes.large_bytes);
  if (bench.wants("put_64mib_ext4")) rows.push_back(put_row(bench, "put_64mib_ext4", bench.disk, sample));
  if (bench.wants("put_64mib_tmpfs")) rows.push_back(put_row(bench, "put_64mib_tmpfs", bench.memory, sample));
  if (bench.wants("get_clone_64mib")) rows.push_back(clone_row(bench, sample));
  if (bench.wants("get_zero_copy_64mib_us")) rows.push_back(zero_copy_row(bench, sample));
  return rows;
}

std::vector<BenchRow> small_rows(const Bench& bench) {
  constexpr std::pair<const char*, double> kRows[] = {{"put_4kib", 30'000}, {"get_4kib", 40'000}, {"release_4kib", 60'000}};
  bench.progress << "put_4kib, get_4kib, release_4kib" << std::endl;
  SmallSamples samples(bench);
  const auto medians = alternate(
      bench.sizes.repetitions, [&] { return samples.of_store(); }, [&] { return samples.of_raw(); });
  std::vector<BenchRow> rows;
  for (std::size_t i = 0; i < std::size(kRows); ++i) {
    if (!bench.wants(kRows[i].first)) continue;
    rows.push_back(rate_row(kRows[i].first, bench.sizes.small_samples, "1/s", medians[i], value_at_least(kRows[i].second)));
  }
  return rows;
}

}  // namespace draftflow::cli
