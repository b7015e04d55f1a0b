#include "page_checker.h"

#include <algorithm>
#include <cinttypes>
#include <cstdarg>
#include <cstdio>

using poolalloc::Status;

const char* PageChecker::name(Rule rule) {
  static constexpr const char* kNames[kRules] = {"one_owner", "reachable", "stream_order", "running_work", "graph"};
  return kNames[static_cast<std::size_t>(rule)];
}

void PageChecker::report(Rule rule, const char* format, ...) {
  if (found_[static_cast<std::size_t>(rule)]++ != 0) return;
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  findings_.push_back({rule, text});
}

std::size_t PageChecker::found(Rule rule) const {
  std::lock_guard guard(mutex_);
  return found_[static_cast<std::size_t>(rule)];
}

std::vector<PageChecker::Finding> PageChecker::findings() const {
  std::lock_guard guard(mutex_);
  return findings_;
}

std::size_t PageChecker::blocks() const {
  std::lock_guard guard(mutex_);
  return blocks_.size();
}

std::size_t PageChecker::uses() const {
  std::lock_guard guard(mutex_);
  std::size_t count = 0;
  for (const auto& [key, frame] : frames_) count += frame->uses.size();
  for (const auto& [address, mapping] : mappings_) count += mapping.uses.size();
  return count;
}

// --- order ----------------------------------------------------------------------------------------------------------

PageChecker::StreamIndex PageChecker::index_of(Device device, Stream stream) {
  for (StreamIndex index = 0; index < streams_.size(); ++index)
    if (streams_[index].stream == stream && streams_[index].device == device) return index;
  streams_.push_back({device, stream, 0, {}, 0});
  return streams_.size() - 1;
}

void PageChecker::raise(Clock& clock, StreamIndex stream, Number number) {
  if (clock.size() <= stream) clock.resize(stream + 1);
  clock[stream] = std::max(clock[stream], number);
}

void PageChecker::join(Clock& clock, const Clock& other) {
  for (StreamIndex stream = 0; stream < other.size(); ++stream) raise(clock, stream, other[stream]);
}

// Whether the use is over before any work that is enqueued on `stream` from now on.
bool PageChecker::before(const Use& use, StreamIndex stream) const {
  return use.stream == stream || known_over(use) || use.number <= at(streams_[stream].behind, use.stream);
}

std::string PageChecker::running(const std::vector<Use>& uses) const {
  std::string text;
  for (const Use& use : uses) {
    if (known_over(use)) continue;
    const StreamState& stream = streams_[use.stream];
    char one[128];
    std::snprintf(one, sizeof one,
                  "%swork %" PRIu64 " of stream %" PRIu64 " of device %d (known to be over: up to %" PRIu64 ")",
                  text.empty() ? "" : ", ", use.number, stream.stream, stream.device, at(host_, use.stream));
    text += one;
  }
  return text;
}

Status PageChecker::record_event(Device device, Event event, Stream stream) {
  std::lock_guard guard(mutex_);
  const Status status = to.record_event(device, event, stream);
  if (status != Status::ok) return status;
  const StreamIndex index = index_of(device, stream);
  Clock& clock = events_[{device, event}];
  clock.clear();
  if (streams_[index].capture != 0) return status;  // a node of the graph: it tells the host nothing
  clock = streams_[index].behind;
  raise(clock, index, streams_[index].last);
  return status;
}

Status PageChecker::query_event(const MayAsk& token, Device device, Event event) {
  std::lock_guard guard(mutex_);
  const Status status = to.query_event(token, device, event);
  if (status == Status::ok) join(host_, events_[{device, event}]);
  return status;
}

Status PageChecker::synchronize_event(const MayAsk& token, Device device, Event event) {
  std::lock_guard guard(mutex_);
  const Status status = to.synchronize_event(token, device, event);
  if (status == Status::ok) join(host_, events_[{device, event}]);
  return status;
}

Status PageChecker::stream_wait_event(Device device, Stream stream, Event event) {
  std::lock_guard guard(mutex_);
  const Status status = to.stream_wait_event(device, stream, event);
  if (status == Status::ok) join(streams_[index_of(device, stream)].behind, events_[{device, event}]);
  return status;
}

Status PageChecker::synchronize_device(const NoCapture& token, Device device) {
  std::lock_guard guard(mutex_);
  const Status status = to.synchronize_device(token, device);
  if (status != Status::ok) return status;
  for (StreamIndex index = 0; index < streams_.size(); ++index)
    if (streams_[index].device == device) raise(host_, index, streams_[index].last);
  return status;
}

Status PageChecker::destroy_event(Device device, Event event) {
  std::lock_guard guard(mutex_);
  const Status status = to.destroy_event(device, event);
  if (status == Status::ok) events_.erase({device, event});
  return status;
}

// --- physical memory and mappings -----------------------------------------------------------------------------------

Status PageChecker::create(Device device, Bytes bytes, Handle* handle) {
  std::lock_guard guard(mutex_);
  const Status status = to.create(device, bytes, handle);
  if (status == Status::ok) {
    auto frame = std::make_shared<Frame>();
    frame->device = device;
    frame->identity = *handle;
    frame->bytes = bytes;
    frames_[{device, *handle}] = std::move(frame);
  }
  return status;
}

Status PageChecker::destroy(Device device, Handle handle) {
  std::lock_guard guard(mutex_);
  const Status status = to.destroy(device, handle);
  const auto found = frames_.find({device, handle});
  if (status != Status::ok || found == frames_.end()) return status;
  const Frame& frame = *found->second;
  if (!frame.live.empty())
    report(Rule::reachable, "page %#" PRIx64 " is destroyed under live block %" PRIu64, handle,
           frame.live.begin()->second.second);
  if (const std::string work = running(frame.uses); !work.empty())
    report(Rule::running_work, "page %#" PRIx64 " is destroyed while in use by %s", handle, work.c_str());
  if (!frame.graphs.empty())
    report(Rule::graph, "page %#" PRIx64 " is destroyed, and graph %" PRIu64 " may be launched", handle,
           frame.graphs.front());
  frames_.erase(found);
  return status;
}

Status PageChecker::map(Device device, Address address, Bytes bytes, Handle handle) {
  std::lock_guard guard(mutex_);
  const Status status = to.map(device, address, bytes, handle);
  const auto found = frames_.find({device, handle});
  if (status == Status::ok && found != frames_.end()) mappings_[address] = {found->second, 0, {}, {}};
  return status;
}

Status PageChecker::allow_access(Device device, Address address, Bytes bytes, poolalloc::DeviceSet peers) {
  std::lock_guard guard(mutex_);
  const Status status = to.allow_access(device, address, bytes, peers);
  if (status != Status::ok) return status;
  for (auto at = mappings_.lower_bound(address); at != mappings_.end() && at->first < address + bytes; ++at)
    at->second.access |= peers | poolalloc::DeviceSet{1} << device;
  return status;
}

// The mapping is no more.
void PageChecker::check_removal(const Mapping& mapping, Address address, const char* what) {
  for (const auto& [first, piece] : mapping.frame->live) {
    const BlockState& block = blocks_.at(piece.second);
    if (block.address < address + mapping.bytes() && address < block.address + block.bytes) {
      report(Rule::reachable, "%#" PRIx64 " is %s under live block %" PRIu64 " at %#" PRIx64, address, what,
             piece.second, block.address);
      break;
    }
  }
  if (const std::string work = running(mapping.uses); !work.empty())
    report(Rule::running_work, "%#" PRIx64 " is %s while in use by %s", address, what, work.c_str());
  if (!mapping.graphs.empty())
    report(Rule::graph, "%#" PRIx64 " is %s, and graph %" PRIu64 " may be launched", address, what,
           mapping.graphs.front());
}

Status PageChecker::unmap(Device device, Address address, Bytes bytes) {
  std::lock_guard guard(mutex_);
  const Status status = to.unmap(device, address, bytes);
  if (status != Status::ok) return status;
  for (auto at = mappings_.lower_bound(address); at != mappings_.end() && at->first < address + bytes;) {
    check_removal(at->second, at->first, "unmapped");
    at = mappings_.erase(at);
  }
  return status;
}

Status PageChecker::release(Device device, Address address, Bytes bytes) {
  std::lock_guard guard(mutex_);
  return to.release(device, address, bytes);
}

Status PageChecker::allocate_segment(Device device, Bytes bytes, Address* address) {
  std::lock_guard guard(mutex_);
  const Status status = to.allocate_segment(device, bytes, address);
  if (status == Status::ok) {
    auto frame = std::make_shared<Frame>();
    frame->device = device;
    frame->identity = *address;
    frame->bytes = bytes;
    mappings_[*address] = {std::move(frame), std::uint64_t{1} << device, {}, {}};
  }
  return status;
}

Status PageChecker::free_segment(Device device, Address address) {
  std::lock_guard guard(mutex_);
  const Status status = to.free_segment(device, address);
  const auto found = mappings_.find(address);
  if (status != Status::ok || found == mappings_.end()) return status;
  check_removal(found->second, address, "freed");
  mappings_.erase(found);
  return status;
}

// Where the mapping that holds `address` starts, or 0.
PageChecker::Address PageChecker::mapping_of(Address address) const {
  auto after = mappings_.upper_bound(address);
  if (after == mappings_.begin()) return 0;
  const auto& [start, mapping] = *--after;
  return address < start + mapping.bytes() ? start : 0;
}

// --- the program ----------------------------------------------------------------------------------------------------

PageChecker::Block PageChecker::allocated(Device device, Stream home, Address address, Bytes bytes, PoolId pool) {
  std::lock_guard guard(mutex_);
  const Block name = ++last_block_;
  settle(blocks_[name] = {device, index_of(device, home), address, bytes, pool, {}}, name, true);
  return name;
}

// On the memory that is mapped there now.
void PageChecker::settle(BlockState& block, Block name, bool is_new) {
  const Address end = block.address + block.bytes;
  for (Address at = block.address; at < end;) {
    const Address start = mapping_of(at);
    if (start == 0) {
      report(Rule::reachable, "block %" PRIu64 " at %#" PRIx64 ": %#" PRIx64 " is not mapped", name, block.address, at);
      const auto next = mappings_.upper_bound(at);
      at = next == mappings_.end() ? end : next->first;
      continue;
    }
    const Mapping& mapping = mappings_.at(start);
    if ((mapping.access >> block.device & 1) == 0)
      report(Rule::reachable, "block %" PRIu64 " at %#" PRIx64 ": no access at %#" PRIx64, name, block.address, at);
    const Address stop = std::min(end, start + mapping.bytes());
    block.pieces.push_back({mapping.frame, at - start, stop - start, start});
    claim(block, name, block.pieces.back());
    if (is_new) check_order(block, name, block.pieces.back());
    block.pieces.back().frame->home = block.home;
    at = stop;
  }
}

void PageChecker::claim(const BlockState& block, Block name, const Piece& piece) {
  Frame& frame = *piece.frame;
  auto next = frame.live.upper_bound(piece.first);
  if (next != frame.live.begin() && std::prev(next)->second.first > piece.first) --next;
  if (next != frame.live.end() && next->first < piece.end)
    report(Rule::one_owner, "blocks %" PRIu64 " at %#" PRIx64 " and %" PRIu64 " at %#" PRIx64 " share page %#" PRIx64,
           next->second.second, blocks_.at(next->second.second).address, name, block.address, frame.identity);
  frame.live.insert({piece.first, {piece.end, name}});
}

// Work on the memory from before the block was there.
void PageChecker::check_order(const BlockState& block, Block name, const Piece& piece) {
  Frame& frame = *piece.frame;
  for (const Graph graph : frame.graphs)
    if (!(graphs_.at(graph).pool == block.pool))
      report(Rule::graph, "block %" PRIu64 " has page %#" PRIx64 ", and graph %" PRIu64 " may be launched", name,
             frame.identity, graph);

  // A page that comes from another stream comes whole; one that stays may still be used elsewhere, beside the block.
  const bool crosses = frame.home != block.home;
  for (const Use& use : frame.uses)
    if ((crosses || (use.first < piece.end && piece.first < use.end)) && !before(use, block.home))
      report(Rule::stream_order,
             "block %" PRIu64 " on stream %" PRIu64 " has page %#" PRIx64 " before work %" PRIu64 " of stream %" PRIu64
             " of device %d is known to be over",
             name, streams_[block.home].stream, frame.identity, use.number, streams_[use.stream].stream,
             streams_[use.stream].device);
  std::erase_if(frame.uses, [this](const Use& use) { return known_over(use); });
}

void PageChecker::add_use(const Piece& piece, StreamIndex stream, Number number) {
  Frame& frame = *piece.frame;
  // Within its home stream work is ordered by itself: the last is all there is to know, for the whole frame.
  Use use{stream, number, piece.first, piece.end};
  if (stream == frame.home) use = {stream, number, 0, frame.bytes};
  std::erase_if(frame.uses, [&](const Use& old) {
    return known_over(old) || (old.stream == stream && use.first <= old.first && old.end <= use.end);
  });
  frame.uses.push_back(use);
  const auto mapping = mappings_.find(piece.mapping);
  if (mapping == mappings_.end() || mapping->second.frame != piece.frame) return;  // reported when it went
  std::erase_if(mapping->second.uses, [&](const Use& old) { return known_over(old) || old.stream == stream; });
  mapping->second.uses.push_back(use);
}

void PageChecker::used(Block name, Stream stream) {
  Device device = 0;
  {
    std::lock_guard guard(mutex_);
    device = blocks_.at(name).device;
  }
  used(name, poolalloc::Stream{device, stream});
}

void PageChecker::used(Block name, poolalloc::Stream stream) {
  std::lock_guard guard(mutex_);
  const BlockState& block = blocks_.at(name);
  const StreamIndex index = index_of(stream.device, stream.id);
  const Graph capture = streams_[index].capture;
  if (capture == 0) {
    const Number number = ++streams_[index].last;
    for (const Piece& piece : block.pieces) add_use(piece, index, number);
    return;
  }
  GraphState& graph = graphs_.at(capture);
  if (!(graph.pool == block.pool)) return;  // memory from outside is the program's to keep
  const auto add = [capture](std::vector<Graph>& graphs) {
    if (std::find(graphs.begin(), graphs.end(), capture) == graphs.end()) graphs.push_back(capture);
  };
  for (const Piece& piece : block.pieces) {
    graph.pieces.push_back(piece);
    add(piece.frame->graphs);
    if (const auto mapping = mappings_.find(piece.mapping); mapping != mappings_.end()) add(mapping->second.graphs);
  }
}

void PageChecker::freed(Block name) {
  std::lock_guard guard(mutex_);
  const auto block = blocks_.find(name);
  disown(block->second, name);
  blocks_.erase(block);
}

void PageChecker::disown(BlockState& block, Block name) {
  for (const Piece& piece : block.pieces) {
    const auto live = piece.frame->live.find(piece.first);
    if (live != piece.frame->live.end() && live->second.second == name) piece.frame->live.erase(live);
  }
  block.pieces.clear();
}

void PageChecker::block_falls_asleep(Block name) {
  std::lock_guard guard(mutex_);
  disown(blocks_.at(name), name);
}

void PageChecker::block_woke(Block name) {
  std::lock_guard guard(mutex_);
  settle(blocks_.at(name), name, false);
}

void PageChecker::graph_falls_asleep(Graph name) {
  std::lock_guard guard(mutex_);
  for (const Piece& piece : graphs_.at(name).pieces) {
    std::erase(piece.frame->graphs, name);
    if (const auto mapping = mappings_.find(piece.mapping); mapping != mappings_.end())
      std::erase(mapping->second.graphs, name);
  }
}

void PageChecker::graph_woke(Graph name) {
  std::lock_guard guard(mutex_);
  for (Piece& piece : graphs_.at(name).pieces) {
    const auto mapping = mappings_.find(piece.mapping);
    if (mapping == mappings_.end() || mapping->second.bytes() < piece.end) {
      report(Rule::graph, "graph %" PRIu64 " woke, and its page at %#" PRIx64 " is not there", name, piece.mapping);
      continue;
    }
    piece.frame = mapping->second.frame;
    for (std::vector<Graph>* graphs : {&piece.frame->graphs, &mapping->second.graphs})
      if (std::find(graphs->begin(), graphs->end(), name) == graphs->end()) graphs->push_back(name);
  }
}

PageChecker::Graph PageChecker::begin_capture(Device device, Stream stream, PoolId pool) {
  std::lock_guard guard(mutex_);
  const StreamIndex index = index_of(device, stream);
  graphs_[++last_graph_] = {device, index, pool, {}};
  streams_[index].capture = last_graph_;
  return last_graph_;
}

void PageChecker::end_capture(Graph name) {
  std::lock_guard guard(mutex_);
  streams_[graphs_.at(name).stream].capture = 0;
}

void PageChecker::replayed(Graph name, Stream stream) {
  std::lock_guard guard(mutex_);
  const GraphState& graph = graphs_.at(name);
  const StreamIndex index = index_of(graph.device, stream);
  const Number number = ++streams_[index].last;
  for (const Piece& piece : graph.pieces) {
    const auto mapping = mappings_.find(piece.mapping);
    if (mapping == mappings_.end() || mapping->second.frame != piece.frame)
      report(Rule::graph, "graph %" PRIu64 " is launched, and its page at %#" PRIx64 " is not there any more", name,
             piece.mapping);
    add_use(piece, index, number);
  }
}

void PageChecker::destroyed(Graph name) {
  std::lock_guard guard(mutex_);
  const auto graph = graphs_.find(name);
  for (const Piece& piece : graph->second.pieces) {
    std::erase(piece.frame->graphs, name);
    if (const auto mapping = mappings_.find(piece.mapping); mapping != mappings_.end())
      std::erase(mapping->second.graphs, name);
  }
  graphs_.erase(graph);
}
