// Runs tasks on several threads: torch's OpenMP workers if they can be found, new threads otherwise.
//
// A second pool besides torch's would be slower: torch's workers keep spinning for milliseconds after each parallel
// region, on the very cores that the second pool's workers wait for.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>
#endif

namespace foveal {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

#if defined(__linux__)
inline int note_libgomp(dl_phdr_info* info, size_t, void* found) {
  if (info->dlpi_name == nullptr || std::strstr(info->dlpi_name, "libgomp") == nullptr) return 0;
  *static_cast<const char**>(found) = info->dlpi_name;
  // Several may be loaded; torch bundles one under a name with a hash.
  return std::strstr(info->dlpi_name, "torch") != nullptr;
}

inline GompParallel gomp_parallel() {
  static const GompParallel found = [] {
    const char* name = nullptr;
    dl_iterate_phdr(note_libgomp, &name);
    void* library = name == nullptr ? nullptr : dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
    return library == nullptr ? nullptr : reinterpret_cast<GompParallel>(dlsym(library, "GOMP_parallel"));
  }();
  return found;
}
#else
inline GompParallel gomp_parallel() { return nullptr; }
#endif

// Decaying states become denormal numbers, which are a hundred times slower on x86; flush them to 0.
class FlushDenormals {
 public:
#if defined(__SSE__)
  FlushDenormals() : before_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(before_ | 0x8040); }
  ~FlushDenormals() { __builtin_ia32_ldmxcsr(before_); }

 private:
  unsigned before_;
#else
  FlushDenormals() {}
#endif
};

// Runs work(0) … work(tasks - 1). An exception in a task stops further tasks from starting and is rethrown here when all
// threads have finished. Tasks are started in order, and every started task is run.
inline void parallel(int64_t tasks, int threads, const std::function<void(int64_t)>& work) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr failure;
  const std::function<void()> take = [&] {
    const FlushDenormals flush;
    try {
      while (!failed.load(std::memory_order_relaxed)) {
        const int64_t task = next++;
        if (task >= tasks) break;
        work(task);
      }
    } catch (...) {
      if (!failed.exchange(true)) failure = std::current_exception();
    }
  };
  if (threads > tasks) threads = static_cast<int>(tasks);
  if (threads <= 1) {
    take();
  } else if (GompParallel run = gomp_parallel()) {
    run([](void* data) { (*static_cast<const std::function<void()>*>(data))(); }, const_cast<std::function<void()>*>(&take),
        static_cast<unsigned>(threads), 0);
  } else {
    std::vector<std::thread> others;
    try {
      for (int i = 1; i < threads; ++i) others.emplace_back(take);
    } catch (...) {
      // No further thread can be started: the running ones do all the work.
    }
    take();
    for (auto& other : others) other.join();
  }
  if (failure) std::rethrow_exception(failure);
}

// Status for a C caller: 0, or 1 if memory ran out, which includes sizes that exceed any vector. Nothing else throws.
template <class Work>
int code_of(const Work& work) noexcept {
  try {
    work();
    return 0;
  } catch (...) {
    return 1;
  }
}

}  // namespace foveal
