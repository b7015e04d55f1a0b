# The simulated CUDA runtime: libsimgpu.so, to be preloaded under a CUDA build of torch, and the libcuda.so.1 that goes with
# it. Included by the top CMakeLists.txt; needs no CUDA toolkit.
#
#   POOLALLOC_CUDA_INCLUDE   folder of real CUDA headers; found by itself where a toolkit is installed. Used only to check
#                            our declarations of CUDA's types (abi_check.cpp), never by the libraries.
set(simgpu_dir "${CMAKE_CURRENT_LIST_DIR}")
include("${simgpu_dir}/stubs/stubs.cmake")

file(GLOB simgpu_sources CONFIGURE_DEPENDS "${simgpu_dir}/*.cpp")
list(REMOVE_ITEM simgpu_sources "${simgpu_dir}/trampolines.cpp" "${simgpu_dir}/abi_check.cpp")
add_library(simgpu SHARED ${simgpu_sources} ${SIMGPU_STUB_SOURCES})
target_include_directories(simgpu PRIVATE csrc "${simgpu_dir}/stubs")
target_link_libraries(simgpu PRIVATE Threads::Threads ${CMAKE_DL_LIBS})
target_precompile_headers(simgpu PRIVATE <algorithm> <array> <atomic> <chrono> <cstdint> <cstring> <deque> <functional>
                          <map> <memory> <mutex> <string> <unordered_map> <vector>)

# The library is loaded before everything else in the process. It must not bring a libstdc++ of its own that the program's
# libraries would then be bound to, so it carries what it needs inside, hidden. A sanitizer needs the shared one.
include(CheckCXXSourceCompiles)
if(NOT POOLALLOC_ASAN AND NOT POOLALLOC_UBSAN AND NOT POOLALLOC_TSAN)
  set(CMAKE_REQUIRED_LINK_OPTIONS -static-libstdc++ -static-libgcc)
  check_cxx_source_compiles("#include <string>\nint main() { return std::string(\"x\").size() == 0; }"
                            POOLALLOC_STATIC_LIBSTDCXX)
  unset(CMAKE_REQUIRED_LINK_OPTIONS)
  if(POOLALLOC_STATIC_LIBSTDCXX)
    target_link_options(simgpu PRIVATE -static-libstdc++ -static-libgcc -Wl,--exclude-libs,ALL)
  endif()
endif()

# The libraries that programs open by name. They need libsimgpu.so even where nothing preloaded it.
function(simgpu_front library name functions table)
  add_library(${library} SHARED "${simgpu_dir}/trampolines.cpp")
  target_include_directories(${library} PRIVATE csrc)
  target_compile_definitions(${library} PRIVATE "SIMGPU_FUNCTIONS=\"simgpu/${functions}\"" SIMGPU_TABLE=${table})
  target_link_options(${library} PRIVATE "-Wl,-soname,lib${name}.so.1" -nodefaultlibs)
  target_link_libraries(${library} PRIVATE -Wl,--no-as-needed simgpu)
  set_target_properties(${library} PROPERTIES OUTPUT_NAME ${name} SUFFIX ".so.1" NO_SONAME ON
                        BUILD_RPATH "$ORIGIN" INSTALL_RPATH "$ORIGIN")
  install(TARGETS ${library} LIBRARY DESTINATION simgpu)
endfunction()
simgpu_front(simgpu_libcuda cuda driver.def simgpu_driver_table)
simgpu_front(simgpu_libnvml nvidia-ml nvml.def simgpu_nvml_table)
install(TARGETS simgpu LIBRARY DESTINATION simgpu)

# --- our declarations of CUDA's types against NVIDIA's, where those are at hand; a newer toolkit stops no installation ---
find_path(POOLALLOC_CUDA_INCLUDE cuda_runtime_api.h
          PATHS /usr/local/cuda/include $ENV{CUDA_HOME}/include $ENV{CUDA_PATH}/include /usr/local/cuda-13.0/include
          NO_DEFAULT_PATH)
if(POOLALLOC_TESTS AND POOLALLOC_CUDA_INCLUDE)
  add_library(simgpu_abi_check OBJECT EXCLUDE_FROM_ALL "${simgpu_dir}/abi_check.cpp")
  target_include_directories(simgpu_abi_check PRIVATE csrc)
  target_include_directories(simgpu_abi_check SYSTEM PRIVATE "${POOLALLOC_CUDA_INCLUDE}")
endif()

# --- threads at once, for the sanitizers: with events that lag and without -----------------------------------------------
if(POOLALLOC_TESTS)
  enable_testing()
  add_executable(native_simgpu_threads EXCLUDE_FROM_ALL "${CMAKE_CURRENT_SOURCE_DIR}/tests/native/simgpu_threads.cpp")
  target_include_directories(native_simgpu_threads PRIVATE csrc)
  target_link_libraries(native_simgpu_threads PRIVATE simgpu Threads::Threads)
  foreach(lag 0 20)
    add_test(NAME simgpu_threads_lag_${lag} COMMAND native_simgpu_threads)
    set_tests_properties(simgpu_threads_lag_${lag} PROPERTIES ENVIRONMENT "POOLALLOC_SIM_LAG=${lag}")
  endforeach()
endif()
