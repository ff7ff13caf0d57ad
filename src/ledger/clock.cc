// SPDX-License-Identifier: Apache-2.0
#include "ledger/clock.h"

#include <fcntl.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <ctime>
#include <span>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"

namespace draftflow {
namespace {

std::string read_boot_id() {
  constexpr const char* kPath = "/proc/sys/kernel/random/boot_id";
  const UniqueFd fd = open_file(kPath, O_RDONLY);
  std::array<char, 36> text{};  // a UUID; files of /proc report the size 0
  read_exact(fd.get(), std::as_writable_bytes(std::span(text)), 0, kPath);
  return std::string(text.data(), text.size());
}

std::int64_t boot_milliseconds() {
  std::timespec now{};
  if (::clock_gettime(CLOCK_BOOTTIME, &now) != 0) throw_errno(errno, "reading CLOCK_BOOTTIME");
  return std::int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1'000'000;
}

}  // namespace

std::int64_t wall_milliseconds() {
  std::timespec now{};
  if (::clock_gettime(CLOCK_REALTIME, &now) != 0) throw_errno(errno, "reading CLOCK_REALTIME");
  return std::int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1'000'000;
}

LedgerClock boot_clock() {
  return {.boot_id = read_boot_id(), .now_ms = boot_milliseconds};
}

}  // namespace draftflow
