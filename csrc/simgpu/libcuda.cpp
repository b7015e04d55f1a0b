// libcuda.so.1: every driver function as a jump to libsimgpu.so, so that there is one state however a program got here.
//
// The library that a program opens must be named libcuda.so.1 and must export the functions, while the functions themselves
// live in libsimgpu.so with the runtime's. A jump through the table there needs no signature and keeps all registers of a call.
#if defined(__x86_64__)
#define JUMP                                        \
  "  movq simgpu_driver_table@GOTPCREL(%rip), %rax\n" \
  "  jmp *(slot * 8)(%rax)\n"
#elif defined(__aarch64__)
#define JUMP                                             \
  "  adrp x16, :got:simgpu_driver_table\n"                 \
  "  ldr x16, [x16, #:got_lo12:simgpu_driver_table]\n"     \
  "  ldr x16, [x16, #(slot * 8)]\n"                        \
  "  br x16\n"
#else
#error "the simulated GPU is built for x86-64 and aarch64"
#endif

#define DRIVER(name, version, symbol) \
  ".globl " #symbol                   \
  "\n"                                \
  ".type " #symbol                    \
  ", %function\n" #symbol ":\n" JUMP  \
  ".size " #symbol ", . - " #symbol   \
  "\n"                                \
  ".set slot, slot + 1\n"

asm(".text\n"
    ".set slot, 0\n"
#include "simgpu/driver.def"
);
