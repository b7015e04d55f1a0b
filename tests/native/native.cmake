# Native tests: each tests/native/*_test.cpp is one program, run by ctest. They link core and driver as a static library,
# because libpoolalloc.so shows only what POOLALLOC_API marks. The sanitizer options of the main build apply.
file(GLOB testing_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/core/*.cpp ${CMAKE_SOURCE_DIR}/csrc/driver/*.cpp
     ${CMAKE_SOURCE_DIR}/csrc/plugin/ipc_listener.cpp)
add_library(poolalloc_testing STATIC EXCLUDE_FROM_ALL ${testing_sources} ${CMAKE_SOURCE_DIR}/tests/native/page_checker.cpp)
target_include_directories(poolalloc_testing PUBLIC ${CMAKE_SOURCE_DIR}/csrc ${CMAKE_SOURCE_DIR}/tests/native)
target_link_libraries(poolalloc_testing PUBLIC Threads::Threads ${CMAKE_DL_LIBS})

file(GLOB native_tests CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/native/*_test.cpp)
foreach(source ${native_tests})
  get_filename_component(name ${source} NAME_WE)
  add_executable(native_${name} ${source})
  target_link_libraries(native_${name} PRIVATE poolalloc_testing)
  add_test(NAME ${name} COMMAND native_${name})
endforeach()

# What tools/check_instructions.py counts: the engine as it is shipped, so the shared library.
add_executable(native_instructions ${CMAKE_SOURCE_DIR}/benchmarks/instructions.cpp)
target_link_libraries(native_instructions PRIVATE poolalloc)

# A long life in short; `make soak` is the whole of it.
add_executable(native_soak ${CMAKE_SOURCE_DIR}/tests/native/soak.cpp)
target_link_libraries(native_soak PRIVATE poolalloc_testing)
add_test(NAME soak COMMAND native_soak)

# CudaDriver once more, on the simulated GPU: two devices whose events lag. A sanitizer's runtime must come first in a
# process, which a preloaded library does not allow.
if(TARGET simgpu AND NOT POOLALLOC_ASAN AND NOT POOLALLOC_UBSAN AND NOT POOLALLOC_TSAN)
  add_dependencies(native_driver_cuda_test simgpu simgpu_libcuda)
  add_test(NAME driver_cuda_test_on_simgpu COMMAND native_driver_cuda_test)
  set_tests_properties(driver_cuda_test_on_simgpu PROPERTIES ENVIRONMENT
    "LD_PRELOAD=$<TARGET_FILE:simgpu>;LD_LIBRARY_PATH=$<TARGET_FILE_DIR:simgpu_libcuda>;POOLALLOC_SIM_DEVICES=2;POOLALLOC_SIM_LAG=3;POOLALLOC_SIM_QUIET=1"
    FAIL_REGULAR_EXPRESSION "skipped: there is no driver")
endif()

# The one test that reads a CUDA header, where there is one.
find_path(POOLALLOC_CUDA_INCLUDE cuda.h HINTS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES include)
if(POOLALLOC_CUDA_INCLUDE)
  target_include_directories(native_cuda_abi_test SYSTEM PRIVATE ${POOLALLOC_CUDA_INCLUDE})
endif()

# How long a growing program waits for memory (docs/memory-limits.md).
add_executable(native_growth EXCLUDE_FROM_ALL ${CMAKE_SOURCE_DIR}/benchmarks/growth.cpp)
target_link_libraries(native_growth PRIVATE poolalloc_testing)
