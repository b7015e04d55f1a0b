// The memory of one (device, stream, pool): slabs for small blocks, an arena for the rest, one address range and one
// set of frames under both, and the frees that wait for other streams.
//
// Everything here runs under the heap's own lock, which only requests of this stream and frees of its blocks take. The
// hot path is a bin lookup and a pop, or a hole and its split. Driver calls happen when a page has no frame; nothing
// here waits for the device except wait_pending and reclaim_waiting, which let go of the lock first.
//
// What changes a heap is noexcept: where the process has no memory for a few bytes of its tables it ends there, since a
// heap that is half changed could hand out memory that is in use.
// heap.cpp: placing and pages; heap_pending.cpp: other streams' uses; heap_kept.cpp: blocks kept for the next request;
// heap_reclaim.cpp: idle pages that leave; heap_sharing.cpp: blocks with names for other processes;
// heap_checkpoint.cpp: a pool's blocks put back; heap_sleep.cpp: memory that goes while its addresses stay;
// heap_stats.cpp: figures and checks.
//
//   requested <= live      rounded = live + pending      rounded + kept <= resident      reserved = resident + idle
//
// Of a heap that is asleep nothing is resident, idle or reserved; what would be, is asleep.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "core/backing/residency.h"
#include "core/backing/segments.h"
#include "core/base/biased_lock.h"
#include "core/base/stats.h"
#include "core/base/types.h"
#include "core/heap/block_counts.h"
#include "core/heap/device_shared.h"
#include "core/heap/sharing.h"
#include "core/options/options.h"
#include "core/placement/arena.h"
#include "core/placement/checkpoint.h"
#include "core/placement/exact_bins.h"
#include "core/placement/planned_blocks.h"
#include "core/placement/slabs.h"
#include "core/plans/plan_cursor.h"
#include "core/recording/layout.h"
#include "core/recording/observer.h"
#include "core/streams/capture.h"
#include "core/streams/uses.h"

namespace poolalloc {

enum class Wait { no, yes };  // for work on the device

// What sets the heaps of a pool apart, or those of streams while memory is asked for in segments.
struct PoolTraits {
  SegmentSupply* segments = nullptr;  // memory comes in segments of it; null: in pages
  bool no_split = false;              // every block has its pages, or its segment, to itself
};

// Neighbouring bytes.
struct MemoryRun {
  Address address = 0;
  Bytes bytes = 0;
};

class Heap final : private PageSupply::Lender {
 public:
  // How far a heap's share of the device totals may lag behind, so the error of a device-wide peak for each heap.
  static constexpr std::int64_t kPublishBytes = 64 << 10;

  // How often an event is asked. A stream with nothing to do needs some microseconds to say so, about as long as that
  // takes.
  static constexpr int kQuestions = 32;

  // `base` is where the range is reserved; it has no place of its own where memory comes in segments, and is 0.
  // Exact bins are for the heaps of streams: memory of a private pool is its graph's or its owner's.
  // A plan takes its part of the arena's addresses, if it is less than half of them and memory comes in pages; it has
  // the requests above a size.
  Heap(DeviceShared& shared, StreamId stream, PoolId pool, Address base, Bytes slab_bytes, Bytes arena_bytes,
       const Options& options, const PoolTraits& traits = {}, const StreamPlan* plan = nullptr, Bytes above = 0);
  ~Heap();
  Heap(const Heap&) = delete;
  Heap& operator=(const Heap&) = delete;

  using Source = PageTable::Source;
  using Tick = PageTable::Tick;
  // ok: *address. out_of_memory: pages are missing. not_supported: addresses are. failed: the driver refused.
  // not_ready, unless new memory may come at once (`source`): other streams may have what lacking() says. Or, where the
  // pool has an allocator of its own: ask() must ask it.
  [[gnu::always_inline]] Status allocate(Bytes bytes, Address* address, Source source = Source::any) noexcept {
    const BiasedLock::Guard guard(lock_);
    if (Bytes offset; bytes <= bin_limit_) {
      Slabs::Bin& bin = slabs_.bin_for(bytes);
      if (slabs_.pop(bin, bytes, &offset)) [[likely]] {
        counts_.add(kSmall, bytes, bin.block_bytes);
        *address = base_ + offset;
        if (attention_ != 0) [[unlikely]] {
          attend();
          *address = address_of(offset);
        }
        return Status::ok;
      }
    }
    return allocate_elsewhere(bytes, address, source);
  }
  // What the last allocation that was not_ready lacked: pages that are on loan, or so many of any.
  struct Lack {
    std::vector<PhysicalHandle> wanted;
    std::uint32_t pages = 0;
  };
  Lack lacking() const {
    const Guard guard(*this);
    return {pages_.wanted(), pages_.missing()};
  }
  bool asks() const { return own_supply_ != nullptr; }
  // Memory for what the last allocation that was not_ready lacked, from the pool's own allocator. Under no lock; throws
  // what that allocator throws. On ok it lies ready, but another request may be faster.
  Status ask();
  // False if no live block starts there.
  bool free(Address address) noexcept {
    const Bytes offset = address - base_;
    const BiasedLock::Guard guard(lock_);
    if ((attention_ & (kTracks | kTranslates | kPutOff)) != 0 ||
        !slabs_.serves(static_cast<PageIndex>(offset / kPageBytes))) [[unlikely]]
      return free_elsewhere(offset);
    const Slabs::Found found = slabs_.find(offset);
    if (found.size == 0) [[unlikely]]
      return false;
    counts_.subtract(kSmall, found.requested, found.size);
    free_slot(found);
    if (attention_ != 0) [[unlikely]]
      publish_if_due();
    return true;
  }
  bool record_stream(Address address, Stream stream) noexcept;
  // The block that contains `address`, live or pending.
  std::optional<BlockInfo> block(Address address) const;
  // What it lies in, where memory comes in segments.
  std::optional<Segment> segment(Address address) const;
  // Every block, by address.
  void append_blocks(std::vector<BlockInfo>& blocks) const;
  HeapLayout layout() const;

  // Whether there are pending frees, as of some moment: takes no lock.
  bool has_pending() const { return uses_.pending_hint() != 0; }
  // Finishes pending frees whose events have completed, as many as one look finds (uses.h). For threads that serve
  // another stream or none: the driver is asked under no lock. Returns how many.
  std::size_t poll_pending() noexcept;
  // Waits for what pending frees wait for now, then finishes them. Returns how many.
  std::size_t wait_pending() noexcept;
  // The live blocks and where they are, by address (checkpoint.h).
  std::vector<PlacedBlock> placed() const;
  // Finishes pending frees, and waits for them if need be. False if some are left: a capture forbids the waiting.
  bool settle();
  // Blocks just there. failed: something lives there, or a page cannot be had; some may have been placed by then.
  Status place_again(const std::vector<PlacedBlock>& blocks) noexcept;
  // Blocks that exact bins keep become holes and their pages idle, those kept for longest first, until that makes so
  // many bytes. Returns the bytes. Surplus goes without being asked, before the heap grows.
  Bytes release_kept(Bytes bytes) noexcept;
  // Idle frames go to the page supply, at most so many. Returns the bytes.
  // Those that the stream is done with, as far as it says so when it is asked: nothing waits. With `idle_since` only
  // the ones that were idle at that tick of the heap's clock. Where pages are mapped they go on loan.
  Bytes reclaim_completed(std::uint32_t at_most_frames, int questions = kQuestions,
                          std::optional<Tick> idle_since = {}) noexcept;
  // The same of these, asked for by a heap that has them mapped; and that heap's part, to take what is spare of them.
  Bytes lend(const std::vector<PhysicalHandle>& wanted) noexcept;
  void take_back(const std::vector<PhysicalHandle>& wanted) noexcept;
  // Those that have been idle for `age`, by the caller's looks at it: `now` is the time of this one. Nothing waits.
  // Surplus kept for that long becomes holes, so that its pages are idle from then on.
  Bytes reclaim_aged(std::uint32_t at_most_frames, std::uint64_t now, std::uint64_t age) noexcept;
  // Any, and mappings that block pages too, after a wait for the stream's work until now.
  Bytes reclaim_waiting(std::uint32_t at_most_frames) noexcept;
  // A name for the live block that contains the address (sharing.h), the same each time; none if there is no block.
  std::optional<SharedBlock> share(Address address);
  // What stands behind it. False if it was freed since.
  bool shared_pieces(const SharedBlock& block, std::vector<PageTable::Piece>* pieces) const;
  // Gives back memory of the host that blocks and pages needed once.
  void shed() noexcept;
  // Whether any page is mapped, be it idle or on its way out.
  bool mapped() const;
  // Access to every page mapped now once more, since the device has another peer.
  Status allow_access_to_mapped();
  // Unmaps everything and hands every frame to the supply, live or not. The end of the heap: no work may touch it.
  void retire() noexcept;

  // From now on what changes here is published: the device has several heaps.
  void publish_from_now();

  StreamId stream() const { return stream_; }
  PoolId pool() const { return pool_; }
  Address base() const { return base_; }
  // Of what lives at an offset of the range.
  Address address_of(Bytes offset) const {
    return segments_ != nullptr ? segments_->address_of(offset) : base_ + offset;
  }
  bool segmented() const { return segments_ != nullptr; }
  Bytes range_bytes() const { return pages_.pages() * kPageBytes; }
  HeapStats stats() const;
  std::uint64_t live_blocks() const;
  Bytes live_bytes() const;  // on the device: none while it is asleep
  // Sleep, of a heap of a pool with pages that are mapped (backing/residency.h says what it is). begin_sleep: from now
  // on requests are not_ready, until cancel_sleep or woken. fell_asleep: the driver has unmapped everything.
  bool asleep() const {
    const Guard guard(*this);
    return asleep_;
  }
  void begin_sleep();
  void cancel_sleep();
  // Why it cannot sleep; null: it can.
  const char* kept_awake_by() const;
  std::vector<Residency::Alias> aliases() const;
  // Where live blocks are, in runs of whole pages.
  std::vector<MemoryRun> live_runs() const;
  void fell_asleep();
  // What need not come back is forgotten, unless a graph may touch it; then aliases() is what to map.
  void prepare_to_wake(bool graphs);
  void woken(const std::vector<Residency::Alias>& aliases);
  // Returns when a driver call under the heap's lock, if there is one, is over.
  void let_calls_finish() const;
  void reset_peaks();
  // Adds what changed since the last time to the device totals.
  void publish();
  void validate() const;

 private:
  // An event behind all work that was enqueued before a tick of the heap's clock.
  struct Mark {
    EventHandle event = 0;
    Tick tick = 0;
    friend bool operator==(const Mark&, const Mark&) = default;
  };
  static constexpr std::size_t kMarks = 16;            // under way: a device may be far behind
  static constexpr std::uint32_t kMarksWanted = 1024;  // at most, until somebody asks again
  // Pending blocks of one kind; peaks are of live and pending ones together, noted while there are pending ones.
  struct Waiting {
    std::int64_t blocks = 0, bytes = 0;
    std::int64_t peak_blocks = 0, peak_bytes = 0;

    void add(Bytes size) {
      ++blocks;
      bytes += static_cast<std::int64_t>(size);
    }
    void subtract(Bytes size) {
      --blocks;
      bytes -= static_cast<std::int64_t>(size);
    }
  };
  // What a call must look to besides its block; nearly always nothing.
  enum Attention : std::uint8_t {
    kTracks = 1,      // blocks that other streams or processes use; always there with the next
    kWaits = 2,       // pending frees
    kPublishes = 4,   // there are several heaps
    kTranslates = 8,  // memory comes in segments
    kPlans = 16,      // there is a plan
    kPutOff = 32,     // the last free is not finished
    kSpecial = 64,    // no page or segment is shared by blocks, or the heap is asleep: see place_specially
    kKeeps = 128      // there are exact bins
  };
  // For all but allocate and free: these leave something to the next call, which no other sees.
  class Guard {
   public:
    explicit Guard(const Heap& heap) : guard_(heap.lock_) { const_cast<Heap&>(heap).tidy(); }

   private:
    const BiasedLock::Guard guard_;
  };
  struct Found {
    Arena::Block* block = nullptr;  // null: in a slab, or
    PlannedBlocks::Block* planned = nullptr;
    Slabs::Found slot;
    Bytes size = 0;  // 0: nothing lives there
    Bytes requested = 0;
  };

  // Whose pages those are at an offset.
  BlockKind kind_at(Bytes offset) const {
    return slabs_.serves(static_cast<PageIndex>(offset / kPageBytes)) ? kSmall : kLarge;
  }
  // With the lock held. An address that is none of the heap's leads to an offset at which no block lies.
  Bytes offset_of(Address address) const {
    return segments_ != nullptr ? segments_->offset_of(address) : address - base_;
  }
  Found find(Bytes offset) const {
    if ((attention_ & kPlans) != 0 && planning_->blocks.serves(offset)) return find_planned(offset);
    const Found found = find_unplanned(offset);
    return found.requested == Arena::kKept ? Found{} : found;
  }
  Found find_unplanned(Bytes offset) const;
  Found find_planned(Bytes offset) const;
  BlockInfo describe(Bytes offset, Bytes size, Bytes requested) const;
  void append_blocks_locked(std::vector<BlockInfo>& blocks) const;
  // Three ways of one: with nothing else to look to, with something, and by the plan.
  enum class Way { plain, attentive, planned };
  template <Way kWay>
  [[gnu::always_inline]] inline Status allocate_elsewhere_as(Bytes bytes, Address* address, Source source);
  [[gnu::noinline]] Status allocate_elsewhere(Bytes bytes, Address* address, Source source);
  [[gnu::noinline]] Status allocate_attentively(Bytes bytes, Address* address, Source source);
  [[gnu::noinline]] bool free_elsewhere(Bytes offset);
  Status allocate_exact(ExactBins::Bin& bin, Bytes bytes, Address* address, Source source);
  [[gnu::noinline]] Status allocate_kept(ExactBins::Bin& bin, Bytes bytes, Address* address);
  ExactBins::Bin* bin_for(Bytes bytes) const {
    return (attention_ & kKeeps) != 0 ? exact_->bins.find(round_up(bytes, kGranularity)) : nullptr;
  }
  // A kept block becomes live; the bin is not empty.
  Arena::Block* take_kept(ExactBins::Bin& bin, Bytes bytes) {
    ++exact_->hits;
    kept_bytes_.subtract(bin.size);
    aside_bytes_ -= static_cast<std::int64_t>(bin.size);
    return exact_->bins.take(bin, bytes);
  }
  void keep(ExactBins::Bin& bin, Arena::Block* block);
  bool make_ahead(ExactBins::Bin& bin);
  Bytes release_kept_locked(Bytes bytes, ExactBins::Which which, std::uint64_t up_to = ~std::uint64_t{0});
  // Whether kept blocks go before the heap grows. What was a block serves any other where pages are mapped; in a
  // segment only what fits its place.
  bool has_surplus() const { return (attention_ & kKeeps) != 0 && segments_ == nullptr && exact_->bins.surplus() != 0; }
  void give_back(const Found& found);
  // The same, but for blocks that exact bins keep.
  void done_with(const Found& found) {
    if ((attention_ & kKeeps) == 0 || found.block == nullptr) return give_back(found);
    if (ExactBins::Bin* bin = exact_->bins.find(found.size)) {
      if (!exact_->bins.has_room(*bin)) return give_back(found);
      keep(*bin, found.block);
    } else if (attention_ == kKeeps) {
      arena_bytes_.subtract(found.size);
      put_off(found.block);
    } else {
      give_back(found);
    }
  }
  // A free whose block leaves pages behind is *put off*: its block or slab stays as it is, since many programs free and
  // then ask for the same size again, at once. The next call that cannot use it finishes the free first. In the figures
  // the block is gone, and nobody can see its pages meanwhile. Other heaps miss them, so where there are some only the
  // page of a slab is put off.
  void free_slot(const Slabs::Found& slot) {
    if (!slabs_.free(slot)) [[likely]]
      return note_unused(kSmall);
    if ((attention_ & ~(kPublishes | kKeeps)) == 0)
      attention_ |= kPutOff;
    else
      put_slab_to_sleep();
  }
  void put_off(Arena::Block* block) {
    put_off_ = block;
    attention_ |= kPutOff;
  }
  bool take_put_off(Bytes bytes, Address* address);
  void tidy() {
    if ((attention_ & kPutOff) != 0) [[unlikely]]
      finish_free();
  }
  [[gnu::noinline]] void finish_free() noexcept;
  void put_slab_to_sleep();
  bool free_attentively(Address address);
  [[gnu::noinline]] Status allocate_missing(Bytes bytes, Bytes* offset, Bytes* rounded, Source source, Status status);
  Status place(Bytes bytes, Bytes* offset, Bytes* rounded);
  Status place_by_plan(Bytes bytes, Bytes* offset, Bytes* rounded);
  PlannedBlocks::Bounds plan_bounds() const;
  bool planned(Bytes bytes) const { return (attention_ & kPlans) != 0 && bytes > above_; }
  Status place_specially(Bytes bytes, Bytes* offset, Bytes* rounded);
  [[gnu::noinline]] Status open_segment(const SegmentNeed& need);
  void close_segments(const PageTable::Detached& gone);
  void note_pages_if_changed() {
    if (slabs_.resident_pages() != noted_slab_pages_ || pages_.held().current != noted_held_) [[unlikely]]
      note_pages();
  }
  void note_pages() {
    noted_slab_pages_ = slabs_.resident_pages();
    noted_held_ = pages_.held().current;
    const std::int64_t slab_bytes = static_cast<std::int64_t>(noted_slab_pages_ * kPageBytes);
    reserved_[kSmall].move_to(slab_bytes);
    reserved_[kLarge].move_to(noted_held_ - slab_bytes);
  }
  [[gnu::noinline]] void note_held();
  void defer(Bytes offset, Bytes size);
  std::size_t look(Uses::Look look);
  Status make_call(Uses::Call* call, const MayAsk* token);
  std::size_t poll_pending_locked();
  std::size_t finish(const std::vector<Uses::Done>& done);
  void set_attention();
  // After an allocation, where there is something to look to.
  void attend() {
    if ((attention_ & kPutOff) != 0 && put_off_ == nullptr && !slabs_.drowsy()) attention_ ^= kPutOff;
    if ((attention_ & kWaits) != 0) note_held();
    publish_if_due();
  }
  void publish_if_due() {
    const auto far = [](std::int64_t now, std::int64_t before) {
      return now - before >= kPublishBytes || before - now >= kPublishBytes;
    };
    if ((attention_ & kPublishes) != 0 && (far(counts_.requested.current(), published_.requested) ||
                                           far(pages_.resident().current, published_.resident))) [[unlikely]]
      publish_change();
  }
  bool others_have_idle_pages() const;
  [[gnu::noinline]] void publish_change();
  void publish_all();
  Stream home() const { return {shared_.device, stream_}; }
  Tick last_mark() const { return marks_.empty() ? pages_.completed() : marks_.back().tick; }
  // Bytes that have become idle, ever.
  std::int64_t released() const {
    return static_cast<std::int64_t>(pages_.resident().total) - pages_.resident().current;
  }
  void ask_marks();
  void leave_mark();
  void add_mark(const Mark& mark);
  void reached(const Mark& mark);
  bool has_completed(const MayAsk& token, EventHandle event, int questions) const;
  void learn_progress(int questions);
  Bytes lend_waiting(std::uint32_t at_most_frames);
  bool lends() const { return ordinary_ && segments_ == nullptr; }
  void end_loans(std::vector<PhysicalHandle>* pages) noexcept override;
  void loans_moved();
  Bytes hand_over(const NoCapture& token, PageTable::Detached& leaving);
  // Of resident pages, what is in no block. Slabs and arena share no page.
  std::int64_t unused(BlockKind kind) const {
    const std::int64_t slab_pages = static_cast<std::int64_t>(slabs_.resident_pages() * kPageBytes);
    const std::int64_t in_arena = arena_bytes_.current;
    if (kind == kLarge) return pages_.resident().current - slab_pages - in_arena;
    return slab_pages - (counts_.live.current() + aside_bytes_ - in_arena);
  }
  // `kind` is here where a block lies, slab or arena, whatever its size.
  void note_unused(BlockKind kind) {
    const std::int64_t here = unused(kind);
    if (here > unused_peak_[kind]) unused_peak_[kind] = here;
    const std::int64_t all = pages_.resident().current - counts_.live.current() - aside_bytes_;
    if (all > all_unused_peak_) all_unused_peak_ = all;
  }
  void complete(BlockStats& stats, const Waiting& waiting) const;
  static void sleep_through(HeapStats& stats);
  void note_progress();
  // A graph's replays may touch any address of its pool, and nothing may be unmapped while one is being captured.
  bool may_unmap() const { return ordinary_ && !shared_.gate.captures(); }

  mutable BiasedLock lock_{[this] { return counts_.blocks.counter().total; }};
  const Address base_;
  Bytes bin_limit_;  // up to it, slabs are looked at first
  std::uint8_t attention_ = 0;
  BlockCounts counts_;
  Counter pending_bytes_, kept_bytes_;
  std::int64_t aside_bytes_ = 0;  // in blocks that are not live: pending and kept
  std::int64_t unused_peak_[kBlockKinds] = {}, all_unused_peak_ = 0;
  Arena::Block* put_off_ = nullptr;  // freed, and still there for the next request
  Counter arena_bytes_;              // rounded, live, pending and kept
  const Bytes slab_limit_;           // up to it, slabs serve what no plan does
  const std::unique_ptr<PageTable> page_table_;
  PageTable& pages_;
  Segments* const segments_;    // null where pages are mapped
  Residency* const residency_;  // null where memory comes in segments
  bool asleep_ = false;
  SegmentSupply* const own_supply_;
  const bool whole_;
  Slabs slabs_;
  Arena arena_;
  PageJournal journal_;
  DeviceShared& shared_;
  const StreamId stream_;
  const PoolId pool_;
  const bool ordinary_;  // no private pool
  Waiting waiting_[kBlockKinds], all_waiting_;
  Counter reserved_[kBlockKinds];  // of pages: cut into slabs, others
  std::uint32_t noted_slab_pages_ = 0;
  std::int64_t noted_held_ = 0;
  std::atomic<std::uint64_t> waits_{0};
  std::uint64_t pending_completed_ = 0;
  Uses uses_;
  std::unordered_map<Bytes, std::uint64_t> names_;  // under which other processes may open live blocks (sharing.h)
  struct Planning {
    Planning(PageTable& pages, PageIndex first, const StreamPlan& plan) : cursor(plan), blocks(pages, first, plan) {}
    PlanCursor cursor;
    PlannedBlocks blocks;
    std::uint64_t hits = 0, misses = 0;
  };
  const std::unique_ptr<Planning> planning_;  // null without a plan
  const Bytes above_;                         // of which it has the requests
  struct Exact {
    Exact(Arena& arena, const std::vector<ExactBin>& bins) : bins(arena, bins) {}
    ExactBins bins;
    std::uint64_t hits = 0, misses = 0;
    Bytes made_ahead = 0, released = 0;  // ever
  };
  const std::unique_ptr<Exact> exact_;  // null without exact bins
  struct Look {
    std::uint64_t time;
    Tick tick;
    std::uint64_t kept;  // blocks ever kept
  };
  std::vector<Look> looks_;         // of reclaim_aged, no older than it takes; oldest first
  std::vector<Mark> marks_;         // that the stream has not reached yet, oldest first; at most kMarks
  std::uint32_t marks_wanted_ = 0;  // so many more may be left, as somebody asked
  std::int64_t marked_ = 0;         // bytes that were released when the last one was left
  struct {
    std::int64_t requested = 0, live = 0, pending = 0, kept = 0, resident = 0, idle_pages = 0;
  } published_;
};

}  // namespace poolalloc
