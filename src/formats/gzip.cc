// SPDX-License-Identifier: Apache-2.0
#include "formats/gzip.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"

namespace draftflow::formats {
namespace {

constexpr std::size_t kChunkBytes = 256U << 10;
constexpr int kGzipWindow = 15 + 16;  // the largest window, gzip wrapper only

// The buffer that doubles: memory stays within twice (while moving, three times) the bytes that came.
class Growing {
 public:
  explicit Growing(std::uint64_t capacity) { move_to(capacity); }

  std::span<std::byte> room() { return space_.subspan(used_); }
  void use(std::size_t bytes) { used_ += bytes; }
  std::uint64_t used() const { return used_; }

  void grow(std::uint64_t limit) { move_to(std::min<std::uint64_t>(limit, space_.size() * 2)); }

  Tensor finish() {
    tensor_.shape = {static_cast<std::int64_t>(used_)};
    tensor_.bytes = tensor_.bytes.first(used_);
    return std::move(tensor_);
  }

 private:
  void move_to(std::uint64_t capacity) {
    auto [tensor, space] = Tensor::allocate(DType::kUInt8, {static_cast<std::int64_t>(capacity)});
    if (used_ > 0) std::memcpy(space.data(), space_.data(), used_);
    tensor_ = std::move(tensor);
    space_ = space;
  }

  Tensor tensor_;
  std::span<std::byte> space_;
  std::size_t used_ = 0;
};

class Inflater {
 public:
  Inflater(const std::filesystem::path& path, std::uint64_t packed_bytes, std::uint64_t max_bytes)
      : path_(path), packed_bytes_(packed_bytes), max_bytes_(max_bytes) {
    if (::inflateInit2(&stream_, kGzipWindow) != Z_OK) throw Exhausted(path_.string() + ": no memory to unpack it");
  }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;
  ~Inflater() { ::inflateEnd(&stream_); }

  // Unpacks one piece of the file, appending to `out`.
  void feed(std::span<std::byte> packed, Growing& out) {
    stream_.next_in = reinterpret_cast<Bytef*>(packed.data());
    stream_.avail_in = static_cast<uInt>(packed.size());
    while (stream_.avail_in > 0 || pending_) {
      if (member_ended_) begin_member();
      // One byte past the limit is asked for: getting it is what proves the file too large.
      if (out.room().empty()) out.grow(max_bytes_ + 1);
      const std::size_t room = std::min<std::size_t>(out.room().size(), 1U << 30);
      stream_.next_out = reinterpret_cast<Bytef*>(out.room().data());
      stream_.avail_out = static_cast<uInt>(room);
      const int result = ::inflate(&stream_, Z_NO_FLUSH);
      out.use(room - stream_.avail_out);
      pending_ = stream_.avail_out == 0 && result == Z_OK;
      if (out.used() > max_bytes_) {
        throw InvalidArgument(fmt::format(
            "{} unpacks to more than {} bytes, the most that is read of its {}: unpack it by hand if it is meant to",
            path_.string(), max_bytes_, packed_bytes_));
      }
      check(result);
    }
  }

  void finish() const {
    if (!member_ended_) throw Corrupt(path_.string() + ": the gzip data ends early: the file is truncated");
  }

 private:
  void begin_member() {
    if (::inflateReset(&stream_) != Z_OK) throw Corrupt(path_.string() + ": the gzip stream cannot go on");
    member_ended_ = false;
  }

  void check(int result) {
    if (result == Z_STREAM_END) {
      member_ended_ = true;
    } else if (result == Z_MEM_ERROR) {
      throw Exhausted(path_.string() + ": no memory to unpack it");
    } else if (result != Z_OK && result != Z_BUF_ERROR) {
      throw Corrupt(
          fmt::format("{}: the gzip data is damaged: {}", path_.string(), stream_.msg == nullptr ? "?" : stream_.msg));
    }
  }

  const std::filesystem::path& path_;
  std::uint64_t packed_bytes_, max_bytes_;
  z_stream stream_{};
  bool member_ended_ = false, pending_ = false;
};

std::uint64_t most_bytes(const GzipLimits& limits, std::uint64_t packed_bytes) {
  std::uint64_t by_ratio = 0;
  if (__builtin_mul_overflow(limits.max_ratio, packed_bytes, &by_ratio)) return limits.max_bytes;
  return std::min(limits.max_bytes, std::max(limits.any_bytes, by_ratio));
}

}  // namespace

Tensor gunzip_file(const std::filesystem::path& path, const GzipLimits& limits) {
  const UniqueFd fd = open_file(path, O_RDONLY | O_NONBLOCK);
  const std::uint64_t size = file_size(fd.get(), path);
  const std::uint64_t max_bytes = most_bytes(limits, size);
  Growing out(std::clamp<std::uint64_t>(size * 2, 1, std::min<std::uint64_t>(kChunkBytes, max_bytes + 1)));
  Inflater inflater(path, size, max_bytes);
  std::vector<std::byte> chunk(std::min<std::uint64_t>(size, kChunkBytes));
  for (std::uint64_t at = 0; at < size; at += chunk.size()) {
    chunk.resize(std::min<std::uint64_t>(size - at, kChunkBytes));
    read_exact(fd.get(), chunk, at, path);
    inflater.feed(chunk, out);
  }
  inflater.finish();
  return out.finish();
}

}  // namespace draftflow::formats
