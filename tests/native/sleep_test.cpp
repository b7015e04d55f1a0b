// Regions: memory that goes to the device by tag, and comes back at the same addresses with what was in it.
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <random>
#include <set>
#include <thread>
#include <utility>

#include "core/allocator.h"
#include "core_rig.h"
#include "effort.h"
#include "faulty_driver.h"

using namespace rig;

namespace {

constexpr Bytes kMiB = 1 << 20;
constexpr StreamId kStream = 16;
constexpr StreamId kOther = 32;
constexpr std::uint64_t kLag = 20;

Options options_with(Bytes sleep_host_limit, bool wake_on_allocate = false) {
  Options options;
  options.sleep_host_limit = sleep_host_limit;
  options.wake_on_allocate = wake_on_allocate;
  return options;
}

struct Rig {
  explicit Rig(std::uint64_t pages = 256, const Options& options = {}, std::uint64_t lag = kLag)
      : model(device_of(pages, lag)), faulty(model), allocator(faulty, options) {}
  ~Rig() { CHECK(model.violations() == 0); }

  struct In {
    In(Rig& rig, const std::string& tag) : rig(rig) { rig.allocator.enter_region(tag); }
    ~In() { rig.allocator.leave_region(); }
    Rig& rig;
  };

  Address take(Bytes bytes, const std::string& tag = "", StreamId stream = kStream) {
    if (tag.empty()) return allocator.allocate(bytes, 0, stream);
    const In in(*this, tag);
    return allocator.allocate(bytes, 0, stream);
  }
  // Leaves something at both ends of a block, and looks for it.
  void write(Address address, Bytes bytes, std::uint32_t what) {
    CHECK(model.copy_from_host(0, address, &what, sizeof what, 0) == Status::ok);
    CHECK(model.copy_from_host(0, address + bytes - sizeof what, &what, sizeof what, 0) == Status::ok);
  }
  bool holds(Address address, Bytes bytes, std::uint32_t what) {
    std::uint32_t first = 0, last = 0;
    return model.copy_to_host(0, &first, address, sizeof first, 0) == Status::ok &&
           model.copy_to_host(0, &last, address + bytes - sizeof last, sizeof last, 0) == Status::ok && first == what &&
           last == what;
  }
  void begin_capture() {
    allocator.begin_capture(0);
    model.begin_capture(0, kStream);
  }
  void end_capture() {
    model.end_capture(0, kStream);
    allocator.end_capture(0);
  }
  Bytes used() const { return model.used_bytes(0); }
  RegionStats region(const std::string& tag) const {
    for (const RegionStats& one : allocator.regions())
      if (one.tag == tag) return one;
    return {};
  }
  // Everything that can leak.
  std::map<std::string, std::int64_t> holdings() const {
    const DeviceStats stats = allocator.stats(0);
    std::map<std::string, std::int64_t> held = {{"used", static_cast<std::int64_t>(used())},
                                                {"metadata", static_cast<std::int64_t>(stats.metadata_bytes)},
                                                {"asleep", static_cast<std::int64_t>(stats.asleep)},
                                                {"host", static_cast<std::int64_t>(stats.asleep_host)}};
    const auto calls = [&](const char* kind) {
      const auto found = stats.driver_calls.find(kind);
      return found != stats.driver_calls.end() ? static_cast<std::int64_t>(found->second) : 0;
    };
    held["descriptors"] = std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {});
    held["handles"] = calls("create") - calls("destroy");
    held["addresses"] = calls("reserve") - calls("release");
    held["streams"] = calls("create_stream") - calls("destroy_stream");
    held["pinned"] = calls("pin_host") - calls("unpin_host");
    return held;
  }

  ModelDriver model;
  FaultyDriver faulty;
  Allocator allocator;
};

TEST_CASE("what sleeps is the device's, and wakes where it was with what it held") {
  Rig rig;
  const Address kept = rig.take(3 * kMiB, "weights"), small = rig.take(700, "weights");
  const Address other = rig.take(5 * kMiB, "cache"), plain = rig.take(9 * kMiB);
  rig.write(kept, 3 * kMiB, 11);
  rig.write(small, 700, 12);
  rig.write(other, 5 * kMiB, 13);
  rig.write(plain, 9 * kMiB, 14);
  const Bytes awake = rig.used();
  const Bytes of_weights = rig.region("weights").reserved;
  CHECK(of_weights >= 3 * kMiB + kPage);
  for (const Keep keep : {Keep::host, Keep::file}) {
    rig.allocator.sleep({"weights"}, keep, std::filesystem::temp_directory_path());
    CHECK(rig.used() == awake - of_weights);
    const RegionStats asleep = rig.region("weights");
    CHECK((asleep.asleep && asleep.reserved == 0 && asleep.resident == 0 && asleep.asleep_bytes == of_weights));
    CHECK(asleep.requested == 3 * kMiB + 700);
    const DeviceStats stats = rig.allocator.stats(0);
    CHECK((stats.asleep == of_weights && stats.reserved.current == static_cast<std::int64_t>(rig.used())));
    CHECK((keep == Keep::host ? stats.asleep_host : stats.asleep_file) >= 3 * kMiB + kPage);
    CHECK((rig.holds(other, 5 * kMiB, 13) && rig.holds(plain, 9 * kMiB, 14)));
    rig.allocator.validate();
    rig.allocator.wake({"weights"});
    CHECK((rig.used() == awake && rig.allocator.stats(0).asleep_host == 0 && rig.allocator.stats(0).asleep == 0));
    CHECK((rig.holds(kept, 3 * kMiB, 11) && rig.holds(small, 700, 12)));
    rig.allocator.validate();
  }
  rig.allocator.sleep({"weights"}, Keep::nothing);
  CHECK(rig.region("weights").contents_bytes == 0);
  rig.allocator.wake({"weights"});
  CHECK(rig.holds(kept, 3 * kMiB, 0));  // the model's new memory
}

TEST_CASE("regions share no page, and those inside each other nest") {
  Rig rig;
  std::set<PhysicalHandle> seen[3];
  const char* const tags[] = {"", "a", "b"};
  for (int round = 0; round < 4; ++round)
    for (int i = 0; i < 3; ++i) {
      const Rig::In outer(rig, "a");  // the inner one counts, and with none the outer
      const Address address = i == 0 ? 0 : rig.take(600 * (round + 1), i == 1 ? "" : tags[i]);
      if (i == 0) continue;
      PhysicalHandle handle = 0;
      Bytes offset = 0;
      CHECK(rig.model.physical(0, address, &handle, &offset));
      seen[i].insert(handle);
    }
  const Address plain = rig.take(600);
  PhysicalHandle handle = 0;
  Bytes offset = 0;
  CHECK(rig.model.physical(0, plain, &handle, &offset));
  seen[0].insert(handle);
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < i; ++j)
      for (const PhysicalHandle each : seen[i]) CHECK(seen[j].count(each) == 0);
  CHECK((rig.region("a").requested != 0 && rig.region("b").requested != 0));
}

TEST_CASE("asleep or awake twice is as good as once, and one of three wakes alone") {
  Rig rig;
  std::map<std::string, Address> blocks;
  for (const std::string tag : {"a", "b", "c"}) {
    blocks[tag] = rig.take(4 * kMiB, tag);
    rig.write(blocks[tag], 4 * kMiB, static_cast<std::uint32_t>(tag[0]));
  }
  rig.allocator.sleep({"a", "b", "c"}, Keep::host);
  rig.allocator.sleep({"a", "b", "c"}, Keep::nothing);  // contents stay as they are kept
  CHECK(rig.used() == 0);
  rig.allocator.wake({"b"});
  rig.allocator.wake({"b", "b"});
  CHECK((rig.region("a").asleep && !rig.region("b").asleep && rig.region("c").asleep));
  CHECK(rig.holds(blocks["b"], 4 * kMiB, 'b'));
  rig.allocator.wake({"a", "b", "c"});
  CHECK((rig.holds(blocks["a"], 4 * kMiB, 'a') && rig.holds(blocks["c"], 4 * kMiB, 'c')));
}

TEST_CASE("a block may be freed while it sleeps, and what it held does not come back") {
  Rig rig;
  const Address large = rig.take(8 * kMiB, "r"), small = rig.take(900, "r"), stays = rig.take(2 * kMiB, "r", kOther);
  rig.write(stays, 2 * kMiB, 5);
  rig.allocator.sleep({"r"}, Keep::host);
  rig.allocator.free(large);
  rig.allocator.free(small);
  CHECK_THROWS_AS(rig.allocator.free(large), UsageError);
  rig.allocator.validate();
  rig.allocator.wake({"r"});
  CHECK((rig.holds(stays, 2 * kMiB, 5) && rig.used() == rig.region("r").reserved));
  rig.allocator.validate();
  rig.allocator.free(stays);
  rig.allocator.sleep({"r"}, Keep::host);  // nothing lives there
  CHECK(rig.used() == 0);
  rig.allocator.wake({"r"});
  CHECK(rig.used() == 0);
  rig.allocator.free(rig.take(kMiB, "r"));
}

TEST_CASE("what was kept is let go of when nothing is left that it belongs to") {
  Rig rig;
  const Address one = rig.take(4 * kMiB, "r"), two = rig.take(3 * kMiB, "r");
  rig.allocator.sleep({"r"}, Keep::host);
  rig.allocator.free(one);
  CHECK(rig.region("r").contents_bytes != 0);
  rig.allocator.free(two);
  const RegionStats left = rig.region("r");
  CHECK((left.asleep && left.asleep_bytes == 0 && left.contents_bytes == 0));
  CHECK((rig.allocator.stats(0).asleep == 0 && rig.allocator.stats(0).asleep_host == 0));
  rig.allocator.wake({"r"});
  CHECK(rig.used() == 0);
  rig.allocator.validate();
}

TEST_CASE("a callback of one that wakes may wake it, and another thread may sleep meanwhile") {
  Rig rig(64);
  const Address block = rig.take(40 * kPage, "r");
  rig.write(block, 40 * kPage, 41);
  rig.allocator.sleep({"r"}, Keep::host);
  Address taken = rig.take(40 * kPage);
  rig.take(2 * kPage, "other");
  const auto name = rig.allocator.oom_callbacks().add([&](DeviceIndex, Bytes) {
    if (taken == 0) return false;
    std::thread([&] { rig.allocator.sleep({"other"}, Keep::nothing); }).join();
    rig.allocator.free(std::exchange(taken, 0));
    rig.allocator.wake({"r"});
    return true;
  });
  rig.allocator.wake({"r"});
  CHECK((rig.region("other").asleep && !rig.region("r").asleep && rig.holds(block, 40 * kPage, 41)));
  rig.allocator.oom_callbacks().remove(name);
}

TEST_CASE("an allocation in a sleeping region is refused, or wakes it") {
  Rig refusing;
  const Address block = refusing.take(kMiB, "r");
  refusing.allocator.sleep({"r"}, Keep::host);
  for (const Bytes bytes : {Bytes{600}, kMiB, 20 * kMiB}) CHECK_THROWS_AS(refusing.take(bytes, "r"), UsageError);
  CHECK_THROWS_AS(refusing.take(kMiB, "r", kOther), UsageError);  // its first there
  CHECK(refusing.take(kMiB) != 0);
  refusing.allocator.wake({"r"});
  CHECK((refusing.take(kMiB, "r") != 0 && refusing.allocator.block(block).has_value()));

  Rig waking(256, options_with(0, true));
  const Address first = waking.take(kMiB, "r");
  waking.write(first, kMiB, 3);
  for (const Bytes bytes : {Bytes{600}, kMiB, 20 * kMiB}) {
    waking.allocator.sleep({"r"}, Keep::host);
    CHECK((waking.take(bytes, "r") != 0 && !waking.region("r").asleep && waking.holds(first, kMiB, 3)));
  }
}

TEST_CASE("what cannot sleep or wake says why, and nothing changes") {
  Rig rig(256, options_with(4 * kMiB));
  const Address block = rig.take(8 * kMiB, "r");
  rig.write(block, 8 * kMiB, 9);
  const auto unchanged = [&] {
    rig.allocator.validate();
    return rig.holds(block, 8 * kMiB, 9) && !rig.region("r").asleep && rig.region("r").reserved >= 8 * kMiB;
  };
  CHECK_THROWS_WITH_AS(rig.allocator.sleep({"x"}, Keep::host), doctest::Contains("its regions are \"r\""), UsageError);
  CHECK_THROWS_AS(rig.allocator.wake({"x"}), UsageError);
  CHECK_THROWS_AS(rig.allocator.enter_region(""), UsageError);
  CHECK_THROWS_WITH_AS(rig.allocator.sleep({"r"}, Keep::host), doctest::Contains("sleep_host_limit"), UsageError);
  CHECK(unchanged());
  CHECK_THROWS_WITH_AS(rig.allocator.sleep({"r"}, Keep::file, "/no/such/folder"), doctest::Contains("/no/such/folder"),
                       UsageError);
  CHECK(unchanged());
  rig.allocator.begin_capture(0);
  CHECK_THROWS_WITH_AS(rig.allocator.sleep({"r"}, Keep::nothing), doctest::Contains("captured"), UsageError);
  rig.allocator.end_capture(0);
  CHECK(unchanged());
  CHECK(rig.allocator.share(block).id != 0);
  CHECK_THROWS_WITH_AS(rig.allocator.sleep({"r"}, Keep::nothing), doctest::Contains("another process"), UsageError);
  CHECK(unchanged());
}

TEST_CASE("a region that finds no room stays asleep, with what it held, until there is room") {
  Rig rig(32);
  const Address block = rig.take(20 * kPage, "r");
  rig.write(block, 20 * kPage, 21);
  rig.allocator.sleep({"r"}, Keep::host);
  const Address taken = rig.take(20 * kPage);
  for (int i = 0; i < 2; ++i) {
    CHECK_THROWS_WITH_AS(rig.allocator.wake({"r"}), doctest::Contains("to wake \"r\""), OutOfMemory);
    CHECK((rig.region("r").asleep && rig.used() <= 24 * kPage));
    rig.allocator.validate();
  }
  rig.allocator.free(taken);  // idle now, which is enough: the ladder takes it
  rig.allocator.wake({"r"});
  CHECK(rig.holds(block, 20 * kPage, 21));

  // A callback that puts another region to sleep makes room, too.
  rig.allocator.sleep({"r"}, Keep::host);
  const Address other = rig.take(20 * kPage, "other");
  rig.write(other, 20 * kPage, 22);
  const auto name = rig.allocator.oom_callbacks().add([&](DeviceIndex, Bytes) {
    rig.allocator.sleep({"other"}, Keep::host);
    return true;
  });
  rig.allocator.wake({"r"});
  CHECK((rig.region("other").asleep && rig.holds(block, 20 * kPage, 21)));
  rig.allocator.oom_callbacks().remove(name);
  rig.allocator.sleep({"r"}, Keep::nothing);
  rig.allocator.wake({"other"});
  CHECK(rig.holds(other, 20 * kPage, 22));
}

TEST_CASE("callbacks are asked again for as long as they make room") {
  Rig rig(64);
  std::vector<std::string> awake;
  const auto name = rig.allocator.oom_callbacks().add([&](DeviceIndex, Bytes) {
    if (awake.empty()) return false;
    rig.allocator.sleep({awake.front()}, Keep::nothing);
    awake.erase(awake.begin());
    return true;
  });
  rig.take(50 * kPage, "large");
  rig.allocator.sleep({"large"}, Keep::nothing);
  for (const std::string tag : {"a", "b", "c", "d"}) {
    rig.take(14 * kPage, tag);
    awake.push_back(tag);
  }
  rig.allocator.wake({"large"});  // takes three of them
  CHECK((!rig.region("large").asleep && awake.size() == 1));
  rig.allocator.sleep({"large"}, Keep::nothing);
  awake.insert(awake.begin(), {"a", "b", "c"});
  rig.allocator.wake({"a", "b", "c"});
  rig.take(30 * kPage);  // so does a request, of which the ladder is asked
  CHECK(awake.size() == 2);
  rig.allocator.oom_callbacks().remove(name);
}

TEST_CASE("what a graph may touch comes back as it was mapped, idle or not") {
  Rig rig;
  const PoolId pool{1, 0};
  const Rig::In in(rig, "r");
  rig.allocator.begin_allocate_to_pool(0, pool, [](StreamId) { return true; });
  rig.begin_capture();
  const Address output = rig.take(3 * kMiB), between = rig.take(6 * kMiB);
  rig.allocator.free(between);
  rig.end_capture();
  rig.allocator.end_allocate_to_pool(0, pool);
  rig.write(output, 3 * kMiB, 8);
  const RegionStats before = rig.region("r");
  CHECK((before.idle_for_graphs >= 4 * kMiB && rig.used() == before.reserved));
  rig.allocator.empty_cache();
  CHECK(rig.used() == before.reserved);
  rig.allocator.sleep({"r"}, Keep::host);
  CHECK(rig.used() == 0);
  rig.allocator.wake({"r"});
  CHECK((rig.used() == before.reserved && rig.holds(output, 3 * kMiB, 8)));
  rig.write(between, 6 * kMiB, 9);  // as a replay does
  rig.allocator.validate();
}

TEST_CASE("a graph that goes while its region sleeps leaves nothing to come back") {
  Rig rig;
  const PoolId pool{1, 0};
  {
    const Rig::In in(rig, "r");
    rig.allocator.begin_allocate_to_pool(0, pool, [](StreamId) { return true; });
    rig.begin_capture();
    rig.allocator.free(rig.take(6 * kMiB));
    rig.end_capture();
    rig.allocator.end_allocate_to_pool(0, pool);
  }
  rig.allocator.sleep({"r"}, Keep::host);
  CHECK(rig.region("r").asleep_bytes >= 6 * kMiB);
  rig.allocator.release_pool(0, pool);
  rig.allocator.wake({"r"});
  CHECK(rig.used() == 0);
}

TEST_CASE("a pool that no capture has used gives back what is idle") {
  Rig rig(64);
  const PoolId pool{0, 1};
  rig.allocator.retain_pool(0, pool);
  rig.allocator.begin_allocate_to_pool(0, pool, [](StreamId) { return true; });
  const Address one = rig.take(20 * kPage), two = rig.take(20 * kPage);
  rig.allocator.end_allocate_to_pool(0, pool);
  rig.allocator.free(one);
  rig.model.advance(2 * kLag);
  const Address large = rig.take(40 * kPage);  // the ladder finds it
  CHECK(large != 0);
  rig.allocator.free(large);
  rig.allocator.free(two);
  rig.allocator.empty_cache();
  CHECK((rig.used() == 0 && rig.allocator.stats(0).idle_in_pools == 0));
}

TEST_CASE("a thousand cycles of each kind leave nothing behind") {
  const int cycles = stress::kSlowness == 1 ? 1000 : 40;
  for (const Keep keep : {Keep::nothing, Keep::host, Keep::file}) {
    Rig rig;
    rig.take(700, "r");
    rig.take(kMiB, "r", kOther);
    std::map<std::string, std::int64_t> after_first;
    for (int cycle = 0; cycle < cycles; ++cycle) {
      rig.allocator.sleep({"r"}, keep, std::filesystem::temp_directory_path());
      rig.allocator.wake({"r"});
      if (cycle == 0) after_first = rig.holdings();
    }
    CHECK(rig.holdings() == after_first);
  }
}

// A program that does everything at random, and what must be true of what it knows.
struct Walk {
  Walk(Rig& rig, unsigned seed) : rig(rig), random(seed) {}

  struct Block {
    std::string tag;
    Address address;
    Bytes bytes;
    std::uint32_t what;
  };

  bool asleep(const std::string& tag) const { return sleeping.count(tag) != 0; }
  std::string any_tag() { return std::string(1, static_cast<char>('a' + random() % 4)); }

  void step() {
    const unsigned what = random() % 100;
    const std::string tag = random() % 5 == 0 ? std::string() : any_tag();
    if (what < 40) {
      if (asleep(tag)) return;
      const Bytes sizes[] = {64 + random() % 4000, 64 + random() % kMiB, 64 + random() % (5 * kMiB)};
      Block block{tag, 0, sizes[random() % 3], static_cast<std::uint32_t>(random())};
      try {
        block.address = rig.take(block.bytes, tag, random() % 4 == 0 ? kOther : kStream);
      } catch (const OutOfMemory&) {
        return free_some();
      }
      rig.write(block.address, block.bytes, block.what);
      blocks.push_back(block);
    } else if (what < 72) {
      if (!blocks.empty()) free(random() % blocks.size());
    } else if (what < 76) {
      if (!blocks.empty() && !asleep(blocks.back().tag))
        rig.allocator.record_stream(blocks.back().address, {0, random() % 2 == 0 ? kOther : StreamId{48}});
    } else if (what < 82) {
      rig.model.advance(random() % kLag);
    } else if (what < 84) {
      rig.allocator.trim(random() % 64 * kPage, 0, random() % 2 == 0);
    } else if (what < 92) {
      const std::string one = any_tag();
      if (rig.region(one).tag.empty()) return;
      const Keep keep = random() % 4 == 0 ? Keep::nothing : Keep::host;
      const bool before = asleep(one);
      rig.allocator.sleep({one}, keep);
      sleeping.insert(one);
      if (keep == Keep::nothing && !before) forget(one);
    } else {
      std::vector<std::string> tags;
      for (const std::string& each : sleeping)
        if (random() % 2 == 0) tags.push_back(each);
      try {
        rig.allocator.wake(tags);
      } catch (const OutOfMemory&) {
        return free_some();
      }
      for (const std::string& each : tags) sleeping.erase(each);
      for (Block& block : blocks)
        if (!asleep(block.tag)) check(block);
    }
  }
  void free(std::size_t index) {
    std::swap(blocks[index], blocks.back());
    if (!asleep(blocks.back().tag)) check(blocks.back());
    rig.allocator.free(blocks.back().address);
    blocks.pop_back();
  }
  void free_some() {
    for (std::size_t i = blocks.size() / 2; i-- > 0;) free(i);
  }
  void forget(const std::string& tag) {
    for (Block& block : blocks)
      if (block.tag == tag) block.what = kUnknown;
  }
  void check(Block& block) {
    if (block.what == kUnknown) {
      block.what = static_cast<std::uint32_t>(random());
      rig.write(block.address, block.bytes, block.what);
    }
    CHECK(rig.holds(block.address, block.bytes, block.what));
  }

  static constexpr std::uint32_t kUnknown = 0xdead;
  Rig& rig;
  std::mt19937 random;
  std::vector<Block> blocks;
  std::set<std::string> sleeping;
};

TEST_CASE("whatever sleeps and wakes at random, blocks keep what they hold") {
  for (unsigned seed = 0; seed < static_cast<unsigned>(stress::steps(4)); ++seed) {
    Rig rig(48);
    Walk walk(rig, seed);
    for (int step = 0; step < stress::steps(1500); ++step) {
      walk.step();
      if (step % 100 == 0) rig.allocator.validate();
      CHECK(rig.allocator.stats(0).reserved.current == static_cast<std::int64_t>(rig.used()));
    }
    rig.model.advance(4 * kLag);
    rig.allocator.wake({walk.sleeping.begin(), walk.sleeping.end()});
    walk.sleeping.clear();
    while (!walk.blocks.empty()) walk.free(0);
    rig.model.advance(4 * kLag);
    rig.allocator.empty_cache();
    CHECK(rig.used() == 0);
  }
}

TEST_CASE("any call of the driver may be refused on the way") {
  for (std::uint64_t nth = 1;; ++nth) {
    Rig rig(64);
    const Address one = rig.take(kMiB, "r"), two = rig.take(2 * kMiB, "r", kOther);
    rig.write(one, kMiB, 31);
    rig.write(two, 2 * kMiB, 32);
    const Bytes awake = rig.used();
    rig.faulty.fail(nth);
    bool slept = false;
    try {
      rig.allocator.sleep({"r"}, Keep::host);
      slept = true;
      rig.allocator.wake({"r"});
    } catch (const DriverError&) {
      CHECK(rig.faulty.failed());
    }
    const bool failed = rig.faulty.failed();
    rig.faulty.mend();
    if (slept && rig.region("r").asleep) {
      CHECK(rig.allocator.stats(0).asleep_host != 0);
      rig.allocator.wake({"r"});
    }
    CHECK((rig.holds(one, kMiB, 31) && rig.holds(two, 2 * kMiB, 32)));
    rig.allocator.validate();
    rig.allocator.empty_cache();
    CHECK(rig.used() == awake);
    if (!failed) break;
  }
}

}  // namespace
