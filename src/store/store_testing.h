// SPDX-License-Identifier: Apache-2.0
//
// For this room's tests only: samples to put, and what an error says.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "draftflow/base/error.h"
#include "draftflow/base/random.h"
#include "draftflow/formats/tensor.h"
#include "draftflow/store/feature_store.h"

namespace draftflow::store_testing {

inline Tensor random_tensor(DType dtype, std::vector<std::int64_t> shape, std::uint64_t seed) {
  auto [tensor, out] = Tensor::allocate(dtype, std::move(shape));
  Random random(seed);
  for (std::byte& byte : out) byte = static_cast<std::byte>(random.next());
  return tensor;
}

// Every dtype, an empty tensor, a scalar, and one tensor of more than two checksum chunks with an odd end.
inline TensorMap sample_tensors(std::uint64_t seed = 1) {
  TensorMap tensors;
  for (const DType dtype : {DType::kBool, DType::kUInt8, DType::kInt8, DType::kInt16, DType::kInt32, DType::kInt64,
                            DType::kFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat64}) {
    tensors.emplace_back("t_" + std::string(dtype_name(dtype)), random_tensor(dtype, {3, 5}, seed++));
  }
  tensors.emplace_back("empty", random_tensor(DType::kFloat32, {0, 7}, seed++));
  tensors.emplace_back("scalar", random_tensor(DType::kInt64, {}, seed++));
  tensors.emplace_back("even", Tensor::copy_of(DType::kInt32, {300'000}, std::vector<std::byte>(1'200'000, std::byte{7})));
  tensors.emplace_back("large", random_tensor(DType::kUInt8, {(2 << 20) + 12345}, seed++));
  return tensors;
}

inline TensorMap small_tensors(std::uint64_t seed = 1) {
  return {{"input_ids", random_tensor(DType::kInt64, {16}, seed)},
          {"hidden_state", random_tensor(DType::kBFloat16, {16, 8}, seed + 1)}};
}

inline PutMetadata run_metadata() {
  return {.run_id = RunId("run"), .num_tokens = 16};
}

inline void expect_same(const TensorMap& got, const TensorMap& wanted) {
  ASSERT_EQ(got.size(), wanted.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].first, wanted[i].first);
    EXPECT_EQ(got[i].second.dtype, wanted[i].second.dtype);
    EXPECT_EQ(got[i].second.shape, wanted[i].second.shape);
    EXPECT_TRUE(std::equal(got[i].second.bytes.begin(), got[i].second.bytes.end(), wanted[i].second.bytes.begin(),
                           wanted[i].second.bytes.end()))
        << "bytes of " << got[i].first;
  }
}

// The message of the E that the call throws; a failure and "" if it throws none or another.
template <class E, class Call>
std::string message_of(Call&& call) {
  try {
    call();
    ADD_FAILURE() << "nothing was thrown";
  } catch (const E& error) {
    return error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "thrown instead: " << error.what();
  }
  return "";
}

// Regular files and links anywhere below, by their path relative to `root`.
inline std::vector<std::string> files_below(const std::filesystem::path& root) {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
    if (!entry.is_directory()) files.push_back(entry.path().lexically_relative(root));
  }
  std::sort(files.begin(), files.end());
  return files;
}

inline std::vector<std::filesystem::path> generation_files(const std::filesystem::path& root) {
  std::vector<std::filesystem::path> files;
  for (const std::string& file : files_below(root)) {
    const bool in_sample = file.find("samples/") != std::string::npos;  // not the further name of layout specforge
    if (file.ends_with(".safetensors") || (in_sample && file.ends_with(".ckpt"))) files.push_back(root / file);
  }
  return files;
}

// Runs `body` in a forked child and ends it without the parent's clean-up; 0 unless it throws.
template <class Body>
pid_t fork_child(Body&& body) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // a test that fails leaves nobody behind
  try {
    body();
    ::_exit(0);
  } catch (const std::exception& error) {
    ::fprintf(stderr, "child: %s\n", error.what());
    ::_exit(1);
  }
}

inline int wait_for(pid_t child) {
  int status = -1;
  ::waitpid(child, &status, 0);
  return status;
}

}  // namespace draftflow::store_testing
