# SPDX-License-Identifier: Apache-2.0
#
# libtorch for the rooms that compute. Its own CMake package drags in flags of the build it came from, so the target
# draftflow_torch takes the headers and libraries alone.
find_path(TORCH_INCLUDE ATen/ATen.h REQUIRED)
find_library(TORCH_LIBRARY torch REQUIRED)
find_library(TORCH_CPU_LIBRARY torch_cpu REQUIRED)
find_library(C10_LIBRARY c10 REQUIRED)
find_library(SENTENCEPIECE_LIBRARY sentencepiece REQUIRED)

add_library(draftflow_torch INTERFACE)
target_include_directories(draftflow_torch SYSTEM INTERFACE ${TORCH_INCLUDE} ${TORCH_INCLUDE}/torch/csrc/api/include)
target_link_libraries(draftflow_torch INTERFACE ${TORCH_LIBRARY} ${TORCH_CPU_LIBRARY} ${C10_LIBRARY})
