// SPDX-License-Identifier: Apache-2.0
#include "draftflow/model/compute.h"

#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <malloc.h>

#include <limits>

namespace draftflow {

void set_up_compute(int threads) {
  at::set_num_threads(threads);
  // OpenBLAS keeps threads of its own, which spin while they wait for work; libtorch does not know of them.
  if (void* set_blas_threads = ::dlsym(RTLD_DEFAULT, "openblas_set_num_threads")) {
    reinterpret_cast<void (*)(int)>(set_blas_threads)(threads);
  }
  ::mallopt(M_MMAP_MAX, 0);
  ::mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
}

}  // namespace draftflow
