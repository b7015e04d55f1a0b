// Graphs, their nodes, executable graphs and the objects that graphs keep alive.
//
// A node keeps what it would do (copies, memsets, host functions); kernels only count. Memory that a capture allocated
// (cudaMallocAsync) is taken when it is captured and given back when the last graph that uses it is gone.
//
// Not here: how nodes come out of streams (capture.h). The simulator's lock guards everything.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "simgpu/cuda_abi.h"
#include "simgpu/errors.h"

namespace poolalloc::simgpu {

struct Device;
struct Stream;

// Calls to make once the lock is released: host functions of graphs, destructors of user objects.
using Deferred = std::vector<std::pair<abi::HostFunction, void*>>;

// What one graph allocated, shared by the graph and everything instantiated from it.
struct GraphMemory {
  std::map<std::uint64_t, std::uint64_t> blocks;  // address -> pool handle
  ~GraphMemory();
};

struct GraphNode {
  std::uint64_t handle = 0;
  std::uint64_t graph = 0;
  abi::NodeType type = abi::kNodeEmpty;
  std::vector<std::uint64_t> dependencies;
  std::function<void()> action;  // run under the lock
  abi::HostFunction host_function = nullptr;
  void* host_data = nullptr;
  std::uint64_t event = 0;              // of event nodes
  std::vector<std::uint64_t> children;  // graphs inside this node: one of a child node, the bodies of a conditional
};

struct Graph {
  std::uint64_t handle = 0;
  std::vector<std::uint64_t> nodes;
  std::map<std::uint64_t, unsigned> user_objects;  // handle -> references held
  std::shared_ptr<GraphMemory> memory = std::make_shared<GraphMemory>();
  bool inside_node = false;  // destroyed with its node, not by the caller
};

struct GraphExec {
  struct Step {
    abi::NodeType type;
    std::function<void()> action;
    abi::HostFunction host_function;
    void* host_data;
    std::uint64_t event;
  };
  std::uint64_t handle = 0;
  unsigned long long flags = 0;
  std::vector<Step> steps;
  std::map<std::uint64_t, unsigned> user_objects;
  std::shared_ptr<GraphMemory> memory;
};

struct UserObject {
  void* object;
  abi::HostFunction destroy;
  unsigned references;
};

Graph* create_graph();
GraphNode& add_node(Graph& graph, abi::NodeType type, std::vector<std::uint64_t> dependencies);
// Destroys a graph with its nodes and what is inside them.
void destroy_graph(Graph& graph, Deferred& deferred);
GraphExec* instantiate(Graph& graph, unsigned long long flags);
void destroy_exec(GraphExec& exec, Deferred& deferred);
// Runs an executable graph on a stream (or, if that is capturing, makes it a child node there).
Error launch_graph(GraphExec& exec, Stream& stream, Deferred& deferred);
void release_user_object(std::uint64_t handle, unsigned count, Deferred& deferred);

}  // namespace poolalloc::simgpu
