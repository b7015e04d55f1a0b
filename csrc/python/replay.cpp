#include "python/replay.h"

#include <algorithm>
#include <utility>

#include "core/allocator.h"
#include "core/base/errors.h"
#include "driver/model_driver.h"

namespace poolalloc::python {
namespace {

class Replayer {
 public:
  Replayer(const ReplayProgram& program, const Options& options, Bytes memory_bytes, bool placements, const Plan* plan)
      : program_(program),
        placements_(placements),
        driver_(model(program, memory_bytes)),
        allocator_(driver_, options, plan),
        slots_(program.slots),
        has_user_(program.pools) {
    // The heap of a private pool counts for two: from it on the allocator publishes its totals, whatever else there is.
    std::vector<int> heaps(static_cast<std::size_t>(program.devices));
    for (const ReplayPlace& place : program.places)
      heaps[static_cast<std::size_t>(place.device)] += place.pool == PoolId{} ? 1 : 2;
    for (const int count : heaps) totals_.push_back({count > 1, {}, {}});
  }

  ReplayResult run(const std::vector<std::uint64_t>& sample_after) {
    ReplayResult result;
    const std::size_t count = program_.steps.size();
    std::size_t step = 0;
    try {
      for (const std::uint64_t after : sample_after) {
        run_until(step, std::min<std::size_t>(after + 1, count), result);
        sample(step - 1, result.samples);
      }
      run_until(step, count, result);
    } catch (const OutOfMemory& error) {
      const ReplayStep& failed = program_.steps[step];
      result.failure = {step, program_.places[failed.where].device, failed.bytes, error.what()};
    }
    result.events = step;
    check();
    for (DeviceIndex device = 0; device < program_.devices; ++device) result.devices.push_back(stats(device));
    return result;
  }

 private:
  struct Slot {
    Address address = 0;
    Bytes requested = 0;
    Bytes live = 0;  // rounded; kept only where there are several heaps
    DeviceIndex device = 0;
  };
  // The allocator's own totals lag behind a little where a device has several heaps; these do not.
  struct Totals {
    bool several_heaps = false;
    Counter requested, live;
  };

  static ModelOptions model(const ReplayProgram& program, Bytes memory_bytes) {
    ModelOptions options;
    options.devices = program.devices;
    options.memory_bytes = memory_bytes;
    return options;
  }

  // `step` is where it stopped, also if this throws.
  void run_until(std::size_t& step, std::size_t end, ReplayResult& result) {
    struct Stopwatch {
      ~Stopwatch() { seconds += core_seconds() - start; }
      double start;
      double& seconds;
    } stopwatch{core_seconds(), result.seconds};
    if (placements_) {
      for (; step < end; ++step) carry_out_and_note(program_.steps[step], result.placements);
    } else {
      for (; step < end; ++step) carry_out(program_.steps[step]);
    }
  }

  void carry_out_and_note(const ReplayStep& step, std::vector<Address>& placements) {
    carry_out(step);
    if (step.kind == StepKind::allocate || step.kind == StepKind::allocate_in_pool)
      placements.push_back(slots_[step.slot].address);
  }

  void carry_out(const ReplayStep& step) {
    switch (step.kind) {
      case StepKind::allocate: {
        const ReplayPlace& place = program_.places[step.where];
        hold(step, place.device, allocator_.allocate(step.bytes, place.device, place.stream));
        break;
      }
      case StepKind::free: {
        const Slot& slot = slots_[step.slot];
        let_go(slot);
        allocator_.free(slot.address);
        break;
      }
      case StepKind::none:
        break;
      case StepKind::allocate_in_pool: {
        const ReplayPlace& place = program_.places[step.where];
        hold(step, place.device, allocate_in_pool(step.bytes, place));
        break;
      }
      case StepKind::free_pending: {
        const Slot& slot = slots_[step.slot];
        let_go(slot);
        free_pending(slot, step.bytes, program_.lanes[step.where]);
        break;
      }
      case StepKind::complete:
        driver_.advance(1);
        ++tick_;
        break;
      case StepKind::release_pool:
        release_pool(program_.places[step.where]);
        break;
    }
  }

  void hold(const ReplayStep& step, DeviceIndex device, Address address) {
    Slot& slot = slots_[step.slot];
    slot.address = address;
    slot.requested = step.bytes;
    slot.device = device;
    Totals& totals = totals_[static_cast<std::size_t>(device)];
    totals.requested.add(step.bytes);
    if (totals.several_heaps) [[unlikely]] {
      slot.live = 0;
      allocator_.base_allocation(address, &slot.live);
      totals.live.add(slot.live);
    }
  }

  void let_go(const Slot& slot) {
    Totals& totals = totals_[static_cast<std::size_t>(slot.device)];
    totals.requested.subtract(slot.requested);
    if (totals.several_heaps) [[unlikely]]
      totals.live.subtract(slot.live);
  }

  // Once an allocation waits for memory the model's clock runs ahead of tick_. What is freed after that lags behind the
  // new time by as much as it did in the trace, as work that is queued later would.
  void free_pending(const Slot& slot, std::uint64_t tick, StreamId lane) {
    if (slot.address != 0) {
      driver_.set_stream_lag(slot.device, lane, tick - tick_);
      allocator_.record_stream(slot.address, {slot.device, lane});
    }
    allocator_.free(slot.address);
  }

  // A pool keeps one user from its first allocation until the trace releases it.
  Address allocate_in_pool(Bytes bytes, const ReplayPlace& place) {
    struct Routing {
      Routing(Allocator& allocator, const ReplayPlace& place) : allocator(allocator), place(place) {
        allocator.begin_allocate_to_pool(place.device, place.pool, [](StreamId) { return true; });
      }
      ~Routing() { allocator.end_allocate_to_pool(place.device, place.pool); }
      Allocator& allocator;
      const ReplayPlace& place;
    };
    Address address = 0;
    {
      const Routing routing(allocator_, place);
      if (!has_user_[place.pool_number] && !is_regions_own(place.pool))
        allocator_.expect_graphs(place.device, place.pool);
      address = allocator_.allocate(bytes, place.device, place.stream);
    }
    if (has_user_[place.pool_number]) allocator_.release_pool(place.device, place.pool);
    has_user_[place.pool_number] = true;
    return address;
  }

  void release_pool(const ReplayPlace& place) {
    if (!has_user_[place.pool_number]) return;
    has_user_[place.pool_number] = false;
    allocator_.release_pool(place.device, place.pool);
  }

  void sample(std::uint64_t event, std::vector<ReplaySample>& samples) {
    for (DeviceIndex device = 0; device < program_.devices; ++device) {
      const DeviceStats now = allocator_.stats(device);
      ReplaySample one;
      one.event = event;
      one.device = device;
#define X(name) one.name = now.name.current;
      POOLALLOC_QUANTITIES(X)
#undef X
      one.driver_work = now.driver_work;
      samples.push_back(std::move(one));
    }
  }

  DeviceStats stats(DeviceIndex device) const {
    DeviceStats stats = allocator_.stats(device);
    const Totals& totals = totals_[static_cast<std::size_t>(device)];
    stats.requested.peak = totals.requested.peak;
    if (totals.several_heaps) stats.live.peak = totals.live.peak;
    return stats;
  }

  void check() const {
    allocator_.validate();
    if (driver_.violations() != 0) throw InvariantViolation("replay: " + driver_.first_violation());
    for (DeviceIndex device = 0; device < program_.devices; ++device) {
      const Totals& totals = totals_[static_cast<std::size_t>(device)];
      const DeviceStats stats = allocator_.stats(device);
      if (stats.requested.current != totals.requested.current ||
          (totals.several_heaps && stats.live.current != totals.live.current))
        throw InvariantViolation("replay: the allocator's figures of device " + std::to_string(device) +
                                 " are not those of the trace");
    }
  }

  const ReplayProgram& program_;
  const bool placements_;
  ModelDriver driver_;  // before the allocator, which uses it until its end
  Allocator allocator_;
  std::vector<Slot> slots_;
  std::vector<Totals> totals_;  // by device
  std::vector<bool> has_user_;  // by number of pool
  std::uint64_t tick_ = 0;
};

}  // namespace

ReplayResult run_replay(const ReplayProgram& program, const Options& options, Bytes memory_bytes,
                        const std::vector<std::uint64_t>& sample_after, bool placements, const Plan* plan) {
  return Replayer(program, options, memory_bytes, placements, plan).run(sample_after);
}

}  // namespace poolalloc::python
