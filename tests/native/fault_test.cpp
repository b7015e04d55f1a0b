// Every single call of the driver refused in turn, in the middle of a program that does everything; and a device that
// refuses everything from some call on. Nothing is lost, nothing is used too early, nobody waits for ever.
#include "stress_program.h"

using namespace poolalloc;
using stress::Actor;
using stress::Program;

namespace {

constexpr int kSteps = 260;

void live(Actor& actor, int step) {
  if (step % 40 == 0) actor.capture();
  if (step % 10 == 5) actor.launch();
  if (step % 80 == 50) actor.destroy_graph();
  if (step % 60 == 30) actor.use_a_pool();
  if (step % 50 == 20) actor.program.allocator.trim(0, 0, true);
  if (step % 50 == 45) actor.program.model.advance(stress::kLag);
  actor.step();
}

// False if the program makes fewer calls.
bool survives_refusal_of(std::uint64_t nth, bool virtual_memory) {
  Program program(40, Lie::none, virtual_memory);
  program.slow.hurry();
  Actor actor(program, 0, 11);
  program.faulty.fail(nth);
  for (int step = 0; step < kSteps; ++step) {
    try {
      live(actor, step);
    } catch (const DriverError&) {
      CHECK(program.faulty.failed());
    }
    if (step % 20 == 0) program.allocator.validate();
  }
  actor.finish();
  program.faulty.mend();
  program.finish();
  return program.faulty.failed();
}

void refuse_each_call(bool virtual_memory) {
  std::uint64_t nth = 1;
  while (survives_refusal_of(nth, virtual_memory)) nth += stress::stride(1);
  std::printf("  %llu calls\n", static_cast<unsigned long long>(nth - 1));
  CHECK(nth > 100);
}

TEST_CASE("any call may be refused once") { refuse_each_call(true); }

TEST_CASE("any call may be refused once where memory comes in segments") { refuse_each_call(false); }

// The device is lost in the middle of the program, which goes on for a while, and is not told that memory is short
// (Program::allocate). False if the program makes fewer calls.
bool survives_loss_at(std::uint64_t nth, bool virtual_memory) {
  Program program(40, Lie::none, virtual_memory);
  program.slow.hurry();
  Actor actor(program, 0, 11);
  program.faulty.fail(nth, true);
  for (int step = 0; step < kSteps; ++step) {
    try {
      live(actor, step);
    } catch (const DriverError&) {
      CHECK(program.faulty.failed());
    }
  }
  program.allocator.validate();
  actor.finish();
  stress::Block block;
  while (program.exchange.take(&block)) program.free(block);
  program.allocator.empty_cache();
  program.allocator.validate();
  CHECK(program.allocator.stats(0).requested.current == 0);
  return program.faulty.lost();
}

TEST_CASE("a lost device is not one that is full") {
  for (const bool virtual_memory : {true, false})
    for (std::uint64_t nth = 1; survives_loss_at(nth, virtual_memory);) nth += stress::stride(17);
}

}  // namespace
