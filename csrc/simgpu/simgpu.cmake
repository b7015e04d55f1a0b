# The simulated CUDA runtime: libsimgpu.so, to be preloaded under a CUDA build of torch, and the libcuda.so.1 that goes with
# it. Included by the top CMakeLists.txt; needs no CUDA toolkit.
#
#   POOLALLOC_CUDA_INCLUDE   folder of real CUDA headers; found by itself where a toolkit is installed. Used only to check
#                            our declarations of CUDA's types (abi_check.cpp), never by the libraries.
set(simgpu_dir "${CMAKE_CURRENT_LIST_DIR}")
include("${simgpu_dir}/stubs/stubs.cmake")

file(GLOB simgpu_sources CONFIGURE_DEPENDS "${simgpu_dir}/*.cpp")
list(REMOVE_ITEM simgpu_sources "${simgpu_dir}/libcuda.cpp" "${simgpu_dir}/abi_check.cpp")
add_library(simgpu SHARED ${simgpu_sources} ${SIMGPU_STUB_SOURCES})
target_include_directories(simgpu PRIVATE csrc "${simgpu_dir}/stubs")
target_link_libraries(simgpu PRIVATE Threads::Threads ${CMAKE_DL_LIBS})

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

# libcuda.so.1 needs libsimgpu.so even where nothing preloaded it.
add_library(simgpu_libcuda SHARED "${simgpu_dir}/libcuda.cpp")
target_include_directories(simgpu_libcuda PRIVATE csrc)
target_link_libraries(simgpu_libcuda PRIVATE -Wl,--no-as-needed simgpu)
set_target_properties(simgpu_libcuda PROPERTIES OUTPUT_NAME cuda SUFFIX ".so.1" NO_SONAME ON
                      BUILD_RPATH "$ORIGIN" INSTALL_RPATH "$ORIGIN")
target_link_options(simgpu_libcuda PRIVATE -Wl,-soname,libcuda.so.1 -nodefaultlibs)
install(TARGETS simgpu simgpu_libcuda LIBRARY DESTINATION simgpu)

# --- our declarations of CUDA's types against NVIDIA's, where those are at hand ----------------------------------------
find_path(POOLALLOC_CUDA_INCLUDE cuda_runtime_api.h
          PATHS /usr/local/cuda/include $ENV{CUDA_HOME}/include $ENV{CUDA_PATH}/include /usr/local/cuda-13.0/include
          NO_DEFAULT_PATH)
if(POOLALLOC_CUDA_INCLUDE)
  add_library(simgpu_abi_check OBJECT "${simgpu_dir}/abi_check.cpp")
  target_include_directories(simgpu_abi_check PRIVATE csrc)
  target_include_directories(simgpu_abi_check SYSTEM PRIVATE "${POOLALLOC_CUDA_INCLUDE}")
endif()
