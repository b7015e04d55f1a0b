// libcuda.so.1 and libnvidia-ml.so.1: every function as a jump to libsimgpu.so, so that there is one state however a
// program got here. Compiled once for each, with
//   SIMGPU_FUNCTIONS   the list of functions: a file of FUNCTION(name, version, symbol)
//   SIMGPU_TABLE       the table in libsimgpu.so that holds their addresses in that order
//
// A program opens these libraries by name and looks its functions up in them, while the functions live with the
// runtime's in the preloaded library. A jump through a table needs no signature and leaves every argument where it is.
#define TEXT_OF(word) #word
#define TEXT(word) TEXT_OF(word)

#if defined(__x86_64__)
#define JUMP \
  "  movq " TEXT(SIMGPU_TABLE) "@GOTPCREL(%rip), %rax\n"     \
  "  jmp *(slot * 8)(%rax)\n"
#elif defined(__aarch64__)
#define JUMP \
  "  adrp x16, :got:" TEXT(SIMGPU_TABLE) "\n"                \
  "  ldr x16, [x16, #:got_lo12:" TEXT(SIMGPU_TABLE) "]\n"    \
  "  ldr x16, [x16, #(slot * 8)]\n"                          \
  "  br x16\n"
#else
#error "the simulated GPU is built for x86-64 and aarch64"
#endif

// clang-format off
#define FUNCTION(name, version, symbol)    \
  ".globl " #symbol "\n"                   \
  ".type " #symbol ", %function\n"         \
  #symbol ":\n" JUMP                       \
  ".size " #symbol ", . - " #symbol "\n"   \
  ".set slot, slot + 1\n"

asm(".text\n"
    ".set slot, 0\n"
#include SIMGPU_FUNCTIONS
);
// clang-format on
