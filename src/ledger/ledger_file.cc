// SPDX-License-Identifier: Apache-2.0
#include "draftflow/ledger/ledger_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <fstream>
#include <span>
#include <string_view>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/text.h"

namespace draftflow {
namespace {

bool is_sqlite(std::istream& file) {
  constexpr std::string_view kMagic("SQLite format 3\0", 16);
  std::string head(kMagic.size(), '\0');
  file.read(head.data(), static_cast<std::streamsize>(head.size()));
  const bool found = file.gcount() == static_cast<std::streamsize>(kMagic.size()) && head == kMagic;
  file.clear();
  file.seekg(0);
  return found;
}

// By the application's number in SQLite's header: to open somebody's ledger would leave files of SQLite beside it.
bool is_ours(const std::filesystem::path& file) {
  constexpr std::streamoff kApplicationIdAt = 68;
  std::ifstream header(file, std::ios::binary);
  header.seekg(kApplicationIdAt);
  std::string id(4, '\0');
  header.read(id.data(), 4);
  return id == "DFLG";
}

ReferenceLedger reference_of(const std::filesystem::path& file) {
  if (is_ours(file)) {
    throw InvalidArgument(
        fmt::format("{} is a ledger of draftflow: export it, and import what comes out ('draftflow ledger export {} "
                    "| draftflow ledger import LEDGER --from -')",
                    printable(file.string(), 4096), printable(file.string(), 4096)));
  }
  return read_reference_ledger(file);
}

// An export takes the place of an earlier one, never of a ledger, a device or a link.
void check_replaceable(const std::filesystem::path& file) {
  const auto status = std::filesystem::symlink_status(file);
  if (!std::filesystem::exists(status)) return;
  std::ifstream old(file, std::ios::binary);
  const bool regular = std::filesystem::is_regular_file(status);
  if (regular && !is_sqlite(old)) return;
  throw InvalidArgument(fmt::format("{} is {}, and an export would take its place: name a new file",
                                    printable(file.string(), 4096),
                                    regular ? "a SQLite database, perhaps the ledger itself" : "no regular file"));
}

// What a killed export left is overwritten; a file of anybody's own is not.
void check_left_by_an_export(int fd, const struct stat& status, const std::filesystem::path& file) {
  constexpr std::string_view kBegin = R"({"kind":"ledger",)";
  std::string begin(kBegin.size(), '\0');
  const bool alone = S_ISREG(status.st_mode) && status.st_nlink == 1 && status.st_uid == ::geteuid();
  const ssize_t got = alone ? ::pread(fd, begin.data(), begin.size(), 0) : -1;
  if (got == 0 || begin == kBegin) return;
  throw InvalidArgument(
      fmt::format("{} is there, and no export left it: take it away, or name another file", printable(file.string(), 4096)));
}

// Where an export is written, beside its target. The name is always the same, so that what a killed export left goes with the
// next one. Its writer has it locked.
UniqueFd open_unfinished(const std::filesystem::path& file) {
  for (;;) {
    UniqueFd fd = open_file(file, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK);
    if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) throw_errno(errno, "locking " + file.string());
      throw Conflict(fmt::format("{} is written by another export: wait for its end, or name another file",
                                 printable(file.string(), 4096)));
    }
    struct stat ours {
    }, there{};
    if (::fstat(fd.get(), &ours) != 0) throw_errno(errno, "opening " + file.string());
    const bool renamed = ::lstat(file.c_str(), &there) != 0 || ours.st_ino != there.st_ino || ours.st_dev != there.st_dev;
    if (renamed) continue;  // the other one has ended meanwhile: this is its export
    check_left_by_an_export(fd.get(), ours, file);
    if (::ftruncate(fd.get(), 0) != 0) throw_errno(errno, "emptying " + file.string());
    return fd;
  }
}

void write_lines(Ledger& ledger, const UniqueFd& fd, const std::filesystem::path& file, const EachLine& each_line) {
  constexpr std::size_t kBlock = 1 << 20;
  std::string block;
  const auto write = [&] {
    write_all(fd.get(), std::as_bytes(std::span(block)), file);
    block.clear();
  };
  ledger.export_to([&](const std::string& line) {
    if (each_line) each_line();
    block += line;
    block += '\n';
    if (block.size() >= kBlock) write();
  });
  write();
  if (::fsync(fd.get()) != 0) throw_errno(errno, "syncing " + file.string());
}

}  // namespace

void export_ledger(Ledger& ledger, const std::filesystem::path& file, const EachLine& each_line) {
  check_replaceable(file);
  std::filesystem::path unfinished = file;
  unfinished += ".unfinished";
  const UniqueFd fd = open_unfinished(unfinished);
  try {
    write_lines(ledger, fd, unfinished, each_line);
    if (::rename(unfinished.c_str(), file.c_str()) != 0) throw_errno(errno, "renaming onto " + file.string());
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(unfinished, ignored);
    throw;
  }
  sync_folder(file.has_parent_path() ? file.parent_path() : ".");
}

// Character by character, so that a file without line breaks cannot fill memory.
std::optional<std::string> next_export_line(std::istream& lines) {
  constexpr std::size_t kMaxLine = 64 << 20;  // of one record
  std::string line;
  for (int c = lines.rdbuf()->sbumpc(); c != '\n'; c = lines.rdbuf()->sbumpc()) {
    if (c == std::char_traits<char>::eof()) return line.empty() ? std::nullopt : std::optional(line);
    if (line.size() == kMaxLine) throw Corrupt(fmt::format("a line of more than {} bytes: this is no export", kMaxLine));
    line += static_cast<char>(c);
  }
  return line;
}

LedgerFile::LedgerFile(const std::filesystem::path& file) : lines_(file, std::ios::binary) {
  if (std::filesystem::is_directory(file)) {
    throw InvalidArgument(
        fmt::format("{} is a folder: an export's or a ledger's file is needed", printable(file.string(), 4096)));
  }
  if (!lines_) throw NotFound(fmt::format("there is no file {} to read: check the path", printable(file.string(), 4096)));
  if (is_sqlite(lines_)) reference_ = reference_of(file);
}

std::optional<ReferenceImport> LedgerFile::import_into(Ledger& ledger, const EachLine& each_line) {
  if (reference_) return import_reference_ledger(ledger, *reference_);
  ledger.import_from([&] {
    if (each_line) each_line();
    return next_export_line(lines_);
  });
  return std::nullopt;
}

}  // namespace draftflow
