# Native tests: one program a room, made of tests/native/*_test.cpp and run by ctest, one test case at a time. They link the
# objects of the library, because libpoolalloc.so shows only what POOLALLOC_API marks. The sanitizer options of the main
# build apply.
#
#   ctest --test-dir build/cmake -R "a second use"    the test cases whose names hold these words
#   build/cmake/native_core -tc="*pending*"           the same without ctest; --help says more
#   build/cmake/native_core -sf="*heap_test.cpp"      those of one file

# doctest: pip installs it with the development tools; where it does not, the system's package is as good.
find_package(Python COMPONENTS Interpreter QUIET)
if(Python_EXECUTABLE)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c "from importlib.metadata import entry_points
for package in entry_points(group='cmake.root', name='doctest'): print(package.load().__path__[0])"
    OUTPUT_VARIABLE doctest_hint OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
find_package(doctest CONFIG QUIET HINTS "${doctest_hint}")
if(NOT doctest_FOUND)
  message(FATAL_ERROR "The C++ tests need doctest 2.4.9 or newer. Install it with: pip install pgm-build-deps (Python 3.11 or "
                      "newer), or: apt-get install doctest-dev")
endif()
include("${doctest_DIR}/doctest.cmake")

add_library(native_kit OBJECT EXCLUDE_FROM_ALL tests/native/main.cpp tests/native/page_checker.cpp)
target_include_directories(native_kit PUBLIC tests/native)
target_link_libraries(native_kit PUBLIC poolalloc_objects doctest::doctest)
# What is tested is optimized as it is shipped; the tests need not be. AddressSanitizer makes optimizing them slow.
target_compile_options(native_kit PUBLIC $<IF:$<BOOL:${POOLALLOC_ASAN}>,-O0,-O1>)

# A room's program. A case that fails goes on to the next check, but not for ever.
function(native_room name)
  if(NOT ARGN)  # ThreadSanitizer has nothing to do there
    return()
  endif()
  add_executable(${name} EXCLUDE_FROM_ALL ${ARGN})
  target_link_libraries(${name} PRIVATE native_kit poolalloc_objects)  # objects are not passed on
  set_property(DIRECTORY APPEND PROPERTY native_rooms ${name})
  doctest_discover_tests(${name} EXTRA_ARGS --abort-after=20 PROPERTIES SKIP_REGULAR_EXPRESSION "skipped: ")
endfunction()

file(GLOB native_tests CONFIGURE_DEPENDS tests/native/*_test.cpp)
if(POOLALLOC_TSAN)  # one thread alone has no races
  foreach(source ${native_tests})
    file(STRINGS "${source}" threads REGEX "std::thread|stress::run|start_log")
    if(NOT threads)
      list(REMOVE_ITEM native_tests ${source})
    endif()
  endforeach()
endif()
set(native_driver_tests ${native_tests})
list(FILTER native_driver_tests INCLUDE REGEX "/(driver_|cuda_)[a-z_]*_test\\.cpp$")
set(native_own_new "${CMAKE_CURRENT_SOURCE_DIR}/tests/native/bad_alloc_test.cpp")
list(REMOVE_ITEM native_tests ${native_driver_tests} ${native_own_new})
set(native_plugin_tests ${native_tests})
list(FILTER native_plugin_tests INCLUDE REGEX "/ipc_[a-z_]*_test\\.cpp$")
list(REMOVE_ITEM native_tests ${native_plugin_tests})
native_room(native_core ${native_tests})
target_precompile_headers(native_core PRIVATE <doctest/doctest.h> <algorithm> <array> <atomic> <chrono> <functional> <map>
                          <memory> <mutex> <optional> <random> <string> <thread> <unordered_map> <vector>)
native_room(native_driver ${native_driver_tests})
native_room(native_plugin ${native_plugin_tests})
if(NOT POOLALLOC_TSAN)
  native_room(native_bad_alloc ${native_own_new})  # replaces operator new of the whole program
endif()

# What tools/check_instructions.py counts: the engine as it is shipped, so the shared library.
add_executable(native_instructions EXCLUDE_FROM_ALL benchmarks/instructions.cpp)
target_link_libraries(native_instructions PRIVATE poolalloc)

# A long life in short; `make soak` is the whole of it.
add_executable(native_soak EXCLUDE_FROM_ALL tests/native/soak.cpp)
target_link_libraries(native_soak PRIVATE poolalloc_objects)
add_test(NAME soak COMMAND native_soak $<IF:$<BOOL:${POOLALLOC_TSAN}>,250000,1000000>)

# CudaDriver once more, on the simulated GPU: two devices whose events lag. A sanitizer's runtime must come first in a
# process, which a preloaded library does not allow.
if(TARGET simgpu AND NOT POOLALLOC_ASAN AND NOT POOLALLOC_UBSAN AND NOT POOLALLOC_TSAN)
  add_dependencies(native_driver simgpu simgpu_libcuda)
  add_test(NAME "the CUDA driver on the simulated GPU" COMMAND native_driver "--source-file=*driver_cuda_test.cpp")
  set_tests_properties("the CUDA driver on the simulated GPU" PROPERTIES ENVIRONMENT
    "LD_PRELOAD=$<TARGET_FILE:simgpu>;LD_LIBRARY_PATH=$<TARGET_FILE_DIR:simgpu_libcuda>;POOLALLOC_SIM_DEVICES=2;POOLALLOC_SIM_LAG=3;POOLALLOC_SIM_QUIET=1"
    FAIL_REGULAR_EXPRESSION "skipped: there is no driver")
endif()

# The one test that reads a CUDA header, where there is one.
find_path(POOLALLOC_CUDA_INCLUDE cuda.h HINTS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES include)
if(POOLALLOC_CUDA_INCLUDE)
  set_source_files_properties(tests/native/cuda_abi_test.cpp PROPERTIES COMPILE_OPTIONS "-isystem${POOLALLOC_CUDA_INCLUDE}")
endif()

# All that ctest runs, and what is counted.
get_property(native_rooms DIRECTORY PROPERTY native_rooms)
add_custom_target(native_tests DEPENDS ${native_rooms} native_soak)
if(TARGET simgpu)
  add_dependencies(native_tests native_simgpu_threads native_instructions)
endif()
if(TARGET simgpu_abi_check)
  add_dependencies(native_tests simgpu_abi_check)
endif()

# How long a growing program waits for memory (docs/memory-limits.md).
add_executable(native_growth EXCLUDE_FROM_ALL benchmarks/growth.cpp)
target_include_directories(native_growth PRIVATE tests/native)
target_link_libraries(native_growth PRIVATE poolalloc_objects)
