// Judges an allocator from outside: a driver that watches every physical page, mapping, event and stream, is told by
// the program of its blocks and of the work it enqueues, and notes every use of memory that is not safe.
//
// What is safe is decided by order, not by luck with time. Every piece of work has a number on its stream. An event
// carries, for every stream, the number up to which work is done when it completes; a stream that waits for it starts
// later work behind all of that, and whoever sees it completed (a query, a synchronization that reaches the driver
// under this one) knows that all of that is done. So a page that changes hands a moment too early is found even if the
// work on it happens to be over.
//
// A stream is one of a device: `{device, stream}`, and an event belongs to the device that it was made on. An event
// that is recorded on a stream of another device tells nothing.
//
// It shares nothing with the allocator but driver.h: not its tables, and not its idea of what is complete.
// Not modelled: the implicit order of the legacy default stream. What breaks the contract of driver.h itself (unmapping
// during a capture, ...) is for the driver below to refuse.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "forwarding_driver.h"

class PageChecker final : public ForwardingDriver {
 public:
  using PoolId = poolalloc::PoolId;
  using Block = std::uint64_t;  // 0 is no block
  using Graph = std::uint64_t;  // 0 is no graph

  enum class Rule {
    one_owner,     // no two live blocks have the same physical memory, through whatever addresses
    reachable,     // all of a live block is mapped, with access, from its allocation to its free
    stream_order,  // memory passes to another stream only behind the work that used it
    running_work,  // no mapping or page goes while enqueued work may still touch it
    graph,         // what a captured graph touches of its pool stays in place, and in that pool, while it may replay
  };
  static constexpr std::size_t kRules = 5;
  static const char* name(Rule rule);
  struct Finding {
    Rule rule;
    std::string text;
  };

  using ForwardingDriver::ForwardingDriver;

  // --- what the program does -------------------------------------------------------------------------------------
  // A block was handed out. From now on work on `home` may touch all of it.
  Block allocated(Device device, Stream home, Address address, Bytes bytes, PoolId pool = {});
  // Work that touches the whole block was enqueued on `stream`, or became part of the graph captured from it. The
  // stream may be one of another device than the block; then it is named with its device.
  void used(Block block, Stream stream);
  void used(Block block, poolalloc::Stream stream);
  // The block is about to be given back: to be called before the allocator is.
  void freed(Block block);
  // What is used on `stream` from now on becomes part of the graph.
  Graph begin_capture(Device device, Stream stream, PoolId pool);
  void end_capture(Graph graph);
  // The graph was launched on `stream`.
  void replayed(Graph graph, Stream stream);
  // It will not be launched again.
  void destroyed(Graph graph);

  // The block's memory, or what the graph touches, goes to the device while its addresses stay: to be called before the
  // allocator is, and nothing may touch it meanwhile. And it is back, on whatever memory.
  void block_falls_asleep(Block block);
  void graph_falls_asleep(Graph graph);
  void block_woke(Block block);
  void graph_woke(Graph graph);

  // --- what was found --------------------------------------------------------------------------------------------
  std::size_t found(Rule rule) const;
  // The first of each rule that was broken.
  std::vector<Finding> findings() const;
  // Live blocks known, and pieces of work kept to judge later ones: for whoever tests the checker.
  std::size_t blocks() const;
  std::size_t uses() const;

  Status release(Device device, Address address, Bytes bytes) override;
  Status create(Device device, Bytes bytes, Handle* handle) override;
  Status destroy(Device device, Handle handle) override;
  Status map(Device device, Address address, Bytes bytes, Handle handle) override;
  Status allow_access(Device device, Address address, Bytes bytes, poolalloc::DeviceSet peers = 0) override;
  Status unmap(Device device, Address address, Bytes bytes) override;
  Status allocate_segment(Device device, Bytes bytes, Address* address) override;
  Status free_segment(Device device, Address address) override;
  Status destroy_event(Device device, Event event) override;
  Status record_event(Device device, Event event, Stream stream) override;
  Status query_event(const MayAsk& token, Device device, Event event) override;
  Status synchronize_event(const MayAsk& token, Device device, Event event) override;
  Status stream_wait_event(Device device, Stream stream, Event event) override;
  Status synchronize_device(const NoCapture& token, Device device) override;

 private:
  using StreamIndex = std::size_t;
  using Number = std::uint64_t;  // of work on a stream, from 1
  using Clock = std::vector<Number>;

  struct StreamState {
    Device device;
    Stream stream;
    Number last = 0;  // work enqueued so far
    Clock behind;     // work of other streams that is done before any later work of this one starts
    Graph capture = 0;
  };
  struct Use {
    StreamIndex stream;
    Number number;
    Bytes first, end;  // within the frame
  };
  // Physical memory made by one call.
  struct Frame {
    Device device;
    std::uint64_t identity;  // handle, or the address of a segment: for the texts
    Bytes bytes;
    StreamIndex home = kNoStream;                   // of the blocks on it
    std::map<Bytes, std::pair<Bytes, Block>> live;  // first byte -> end, block
    std::vector<Use> uses;                          // not known to be over
    std::vector<Graph> graphs;                      // that touch it
  };
  struct Mapping {
    std::shared_ptr<Frame> frame;
    std::uint64_t access = 0;  // bit by device
    std::vector<Use> uses;     // through it: the last of each stream
    std::vector<Graph> graphs;
    Bytes bytes() const { return frame->bytes; }
  };
  struct Piece {
    std::shared_ptr<Frame> frame;
    Bytes first, end;  // within the frame
    Address mapping;
  };
  struct BlockState {
    Device device;
    StreamIndex home;
    Address address;
    Bytes bytes;
    PoolId pool;
    std::vector<Piece> pieces;
  };
  struct GraphState {
    Device device;
    StreamIndex stream;
    PoolId pool;
    std::vector<Piece> pieces;
  };
  static constexpr StreamIndex kNoStream = ~StreamIndex{0};

  StreamIndex index_of(Device device, Stream stream);
  static Number at(const Clock& clock, StreamIndex stream) { return stream < clock.size() ? clock[stream] : 0; }
  static void raise(Clock& clock, StreamIndex stream, Number number);
  static void join(Clock& clock, const Clock& other);
  bool known_over(const Use& use) const { return use.number <= at(host_, use.stream); }
  bool before(const Use& use, StreamIndex stream) const;
  Address mapping_of(Address address) const;
  void settle(BlockState& block, Block name, bool is_new);
  void disown(BlockState& block, Block name);
  void claim(const BlockState& block, Block name, const Piece& piece);
  void check_order(const BlockState& block, Block name, const Piece& piece);
  void add_use(const Piece& piece, StreamIndex stream, Number number);
  void check_removal(const Mapping& mapping, Address address, const char* what);
  std::string running(const std::vector<Use>& uses) const;
  void report(Rule rule, const char* format, ...) __attribute__((format(printf, 3, 4)));

  mutable std::mutex mutex_;  // held across the calls of the driver below, so that both see one order of things
  std::vector<StreamState> streams_;
  Clock host_;  // work that the host has seen completed
  std::map<std::pair<Device, Event>, Clock> events_;
  std::map<std::pair<Device, Handle>, std::shared_ptr<Frame>> frames_;
  std::map<Address, Mapping> mappings_;
  std::map<Block, BlockState> blocks_;
  std::map<Graph, GraphState> graphs_;
  Block last_block_ = 0;
  Graph last_graph_ = 0;
  std::size_t found_[kRules] = {};
  std::vector<Finding> findings_;
};
