// SPDX-License-Identifier: Apache-2.0
//
// The rows of a store with a million samples: what an operation costs there, by how much more than with a thousand.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <fstream>
#include <memory>
#include <optional>
#include <ostream>

#include "cli/bench.h"
#include "cli/bench_raw.h"
#include "draftflow/base/error.h"
#include "draftflow/base/random.h"

namespace draftflow::cli {
namespace {

const StoreId kStore("bench");
constexpr int kRemembered = 20'000;            // refs of residents, for gets
constexpr std::uint64_t kBytesEach = 9 << 10;  // a folder, a file and their inodes
constexpr std::uint64_t kGeneration = (1ULL << 24) + 1;
constexpr int kHealths = 200;
constexpr int kRssRounds = 4, kRssSamples = 500;

class ResidentStore {
 public:
  explicit ResidentStore(const Bench& bench)
      : bench_(bench), root_(bench.disk / "resident"), sample_(bench_sample(bench.sizes.resident_bytes)) {
    check_room();
    store_ = create_shared_dir_store(root_, kStore, {});
    raw_ = std::make_unique<RawStore>(root_ / kStore.str());
  }

  const std::filesystem::path& root() const { return root_; }

  // The seconds that it took, the time to bring it to the disk included.
  double grow_to(int count) {
    const PutMetadata metadata = bench_metadata();
    const int every = std::max(1, count / kRemembered);
    refs_.clear();
    return seconds_of([&] {
      for (; count_ < count; ++count_) {
        if (count_ % 100'000 == 0) bench_.progress << "resident samples: " << count_ << " of " << count << std::endl;
        if (count_ % 1000 == 0) check_bench_stop();
        const SampleRef ref = store_->put(sample_, SampleId(next_id()), metadata);
        if (count_ == 0) {
          file_.resize(raw_->size_of(raw_names(ref.sample_id.str(), ref.generation)), std::byte{1});
        }
        if (count_ % every == 0) refs_.push_back(ref);
      }
      const UniqueFd folder = open_file(root_, O_RDONLY | O_DIRECTORY);
      if (::syncfs(folder.get()) != 0) throw_errno(errno, "syncfs of " + root_.string());
    });
  }

  // A put, a get and a remove.
  std::vector<BenchMedians> measure() {
    at_ = 0;
    return alternate(
        bench_.sizes.repetitions, [&] { return of_store(); }, [&] { return of_raw(); });
  }

  BenchMedians measure_health() {
    return alternate(
        bench_.sizes.repetitions,
        [&] {
          return std::vector{seconds_of([&] {
                               for (int i = 0; i < kHealths; ++i) store_->health();
                             }) /
                             kHealths};
        },
        [&] {
          struct statvfs status {};
          return std::vector{seconds_of([&] {
                               for (int i = 0; i < kHealths; ++i) ::statvfs(root_.c_str(), &status);
                             }) /
                             kHealths};
        })[0];
  }

 private:
  void check_room() const {
    struct statvfs status {};
    if (::statvfs(bench_.disk.c_str(), &status) != 0) throw_errno(errno, "statvfs of " + bench_.disk.string());
    const std::uint64_t samples = static_cast<std::uint64_t>(bench_.sizes.many_resident) + 1000;
    const std::uint64_t bytes = samples * kBytesEach, free = status.f_bavail * status.f_frsize;
    const bool inodes = status.f_files == 0 || status.f_favail >= 2 * samples;
    if (free >= bytes && inodes) return;
    throw Exhausted(
        fmt::format("{} has {} bytes and {} inodes free, but {} resident samples take about {} and {}: name another "
                    "folder with --dir, or use --quick",
                    bench_.disk.string(), free, status.f_favail, bench_.sizes.many_resident, bytes, 2 * samples));
  }

  std::string next_id() { return fmt::format("{:016x}", random_.next()); }

  const SampleRef& next_resident() { return refs_[at_++ % refs_.size()]; }

  std::vector<double> of_store() {
    const int n = bench_.sizes.resident_samples;
    std::vector<SampleId> ids;
    std::vector<SampleRef> olds, news;
    std::vector<FeatureHandle> handles;
    for (int i = 0; i < n; ++i) {
      ids.emplace_back(next_id());
      olds.push_back(next_resident());
    }
    news.reserve(ids.size());
    handles.reserve(ids.size());
    const PutMetadata metadata = bench_metadata();
    const double put = seconds_of([&] {
      for (const SampleId& id : ids) news.push_back(store_->put(sample_, id, metadata));
    });
    const double get = seconds_of([&] {
      for (const SampleRef& ref : olds) handles.push_back(store_->get(ref).handle);
    });
    for (const FeatureHandle& handle : handles) store_->release(handle);
    const double remove = seconds_of([&] {
      for (const SampleRef& ref : news) store_->remove(ref);
    });
    return {put / n, get / n, remove / n};
  }

  std::vector<double> of_raw() {
    const int n = bench_.sizes.resident_samples;
    std::vector<RawNames> news, olds;
    for (int i = 0; i < n; ++i) {
      news.push_back(raw_names(next_id(), kGeneration));
      const SampleRef& ref = next_resident();
      olds.push_back(raw_names(ref.sample_id.str(), ref.generation));
    }
    std::vector<std::byte> out(file_.size());
    const double put = seconds_of([&] {
      for (const RawNames& names : news) raw_->put(names, file_);
    });
    const double get = seconds_of([&] {
      for (const RawNames& names : olds) raw_->get(names, out);
    });
    for (const RawNames& names : olds) raw_->release(names);
    const double remove = seconds_of([&] {
      for (const RawNames& names : news) raw_->remove(names);
    });
    return {put / n, get / n, remove / n};
  }

  const Bench& bench_;
  const std::filesystem::path root_;
  const TensorMap sample_;
  std::unique_ptr<FeatureStore> store_;
  std::unique_ptr<RawStore> raw_;
  Random random_{20'240'229};
  std::vector<std::byte> file_;  // as large as a resident's
  std::vector<SampleRef> refs_;  // some residents, evenly spread over random names
  std::size_t at_ = 0;
  int count_ = 0;
};

double resident_mib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmRSS:")) return std::stod(line.substr(6)) / 1024;  // kB
  }
  throw Unavailable("/proc/self/status has no VmRSS");
}

std::string grow_by_using(int orders) {
  std::string root;
  if (!receive_message(orders, root)) throw Unavailable("the benchmark ended without an order");
  const double before = resident_mib();
  const auto store = open_shared_dir_store(root, kStore, {});
  const TensorMap sample = bench_sample(256);
  for (int round = 0; round < kRssRounds; ++round) {
    std::vector<Fetched> fetched;
    std::vector<SampleRef> refs;
    for (int i = 0; i < kRssSamples; ++i) {
      refs.push_back(store->put(sample, SampleId(fmt::format("rss-{}-{}", round, i)), bench_metadata()));
    }
    for (const SampleRef& ref : refs) fetched.push_back(store->get(ref));
    for (const Fetched& one : fetched) store->release(one.handle);
    for (const SampleRef& ref : refs) store->remove(ref);
    store->health();
  }
  return fmt::format("{}", resident_mib() - before);
}

std::string count_text(int count) {
  if (count >= 1'000'000 && count % 1'000'000 == 0) return fmt::format("{} million", count / 1'000'000);
  return count >= 1000 && count % 1000 == 0 ? fmt::format("{},000", count / 1000) : fmt::format("{}", count);
}

void add_growth_rows(const Bench& bench, const std::vector<BenchMedians>& few, const std::vector<BenchMedians>& many,
                     double built_s, std::vector<BenchRow>& rows) {
  constexpr const char* kNames[] = {"put_1m_resident", "get_1m_resident", "remove_1m_resident"};
  for (std::size_t i = 0; i < std::size(kNames); ++i) {
    if (!bench.wants(kNames[i])) continue;
    const std::string note =
        fmt::format("{} to {} resident: {:.1f} to {:.1f} us, raw {:.1f} to {:.1f} us; filled in {:.0f} s",
                    count_text(bench.sizes.few_resident), count_text(bench.sizes.many_resident), few[i].value * 1e6,
                    many[i].value * 1e6, few[i].limit * 1e6, many[i].limit * 1e6, built_s);
    rows.push_back({kNames[i], many[i].value / few[i].value, "x", many[i].limit / few[i].limit, ratio_at_most(1.2), note});
  }
}

}  // namespace

RssProbe::RssProbe()
    : orders_(make_pipe()), child_([this] {
        orders_.second.reset();
        return grow_by_using(orders_.first.get());
      }) {}

double RssProbe::measure(const std::filesystem::path& root) {
  send_message(orders_.second.get(), root.string());
  return std::stod(child_.result());
}

std::vector<BenchRow> resident_rows(const Bench& bench, RssProbe* few_rss, RssProbe* many_rss) {
  const bool growth = bench.wants("put_1m_resident") || bench.wants("get_1m_resident") || bench.wants("remove_1m_resident");
  bench.progress << fmt::format("rows with {} resident samples", count_text(bench.sizes.many_resident)) << std::endl;
  const std::string resident = count_text(bench.sizes.many_resident) + " resident";
  std::vector<BenchRow> rows;
  ResidentStore store(bench);
  store.grow_to(bench.sizes.few_resident);
  std::vector<BenchMedians> few;
  if (growth) few = store.measure();
  const double few_mib = few_rss != nullptr ? few_rss->measure(store.root()) : 0;
  const double built_s = store.grow_to(bench.sizes.many_resident);
  if (growth) add_growth_rows(bench, few, store.measure(), built_s, rows);
  if (bench.wants("health_1m_resident_us")) {
    const BenchMedians health = store.measure_health();
    rows.push_back({"health_1m_resident_us", health.value * 1e6, "us", health.limit * 1e6, value_at_most(50),
                    resident + "; limit: statvfs"});
  }
  if (many_rss != nullptr) {
    rows.push_back({"rss_1m_mib", many_rss->measure(store.root()), "MiB", few_mib, value_at_most(64),
                    fmt::format("{}; limit: with {}", resident, count_text(bench.sizes.few_resident))});
  }
  return rows;
}

}  // namespace draftflow::cli
