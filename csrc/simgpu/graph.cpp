// Graphs and their execution; see graph.h.
#include "simgpu/graph.h"

#include <utility>

#include "simgpu/capture.h"
#include "simgpu/simulator.h"

namespace poolalloc::simgpu {
namespace {

// Appends what a graph does to an executable one, child graphs in place. The bodies of conditional nodes are left out:
// whether they run is computed on the device.
void flatten(Graph& graph, std::vector<GraphExec::Step>& steps) {
  for (const std::uint64_t handle : graph.nodes) {
    GraphNode& node = *sim().nodes.find(handle);
    if (node.type == abi::kNodeGraph) {
      for (const std::uint64_t child : node.children) flatten(*sim().graphs.find(child), steps);
    } else {
      steps.push_back({node.type, node.action, node.host_function, node.host_data, node.event});
    }
  }
}

}  // namespace

GraphMemory::~GraphMemory() {
  for (const auto& [address, pool_handle] : blocks) {
    Pool* pool = sim().pools.find(pool_handle);
    if (!pool || !pool->owns(address)) continue;
    pool->device().graph_memory_used -= pool->size_of(address);
    pool->free(address);
  }
}

Graph* create_graph() {
  auto [handle, graph] = sim().graphs.create();
  graph->handle = handle;
  return graph;
}

GraphNode& add_node(Graph& graph, abi::NodeType type, std::vector<std::uint64_t> dependencies) {
  auto [handle, node] = sim().nodes.create();
  node->handle = handle;
  node->graph = graph.handle;
  node->type = type;
  node->dependencies = std::move(dependencies);
  graph.nodes.push_back(handle);
  return *node;
}

void destroy_graph(Graph& graph, Deferred& deferred) {
  for (const std::uint64_t node_handle : graph.nodes) {
    const std::vector<std::uint64_t> children = sim().nodes.find(node_handle)->children;
    for (const std::uint64_t child : children) {
      if (Graph* inner = sim().graphs.find(child)) destroy_graph(*inner, deferred);
    }
    sim().nodes.destroy(node_handle);
  }
  for (const auto& [object, count] : graph.user_objects) release_user_object(object, count, deferred);
  sim().graphs.destroy(graph.handle);
}

GraphExec* instantiate(Graph& graph, unsigned long long flags) {
  auto [handle, exec] = sim().execs.create();
  exec->handle = handle;
  exec->flags = flags;
  exec->memory = graph.memory;
  exec->user_objects = graph.user_objects;
  for (const auto& [object, count] : exec->user_objects) sim().user_objects.find(object)->references += count;
  flatten(graph, exec->steps);
  return exec;
}

void destroy_exec(GraphExec& exec, Deferred& deferred) {
  for (const auto& [object, count] : exec.user_objects) release_user_object(object, count, deferred);
  sim().execs.destroy(exec.handle);
}

Error launch_graph(GraphExec& exec, Stream& stream, Deferred& deferred) {
  if (const Error error = check_capture_for_work(stream); error != kSuccess) return error;
  if (stream.capture) {
    Graph* child = create_graph();
    child->inside_node = true;
    child->memory = exec.memory;
    std::vector<std::uint64_t> previous;
    for (const GraphExec::Step& step : exec.steps) {
      GraphNode& node = add_node(*child, step.type, previous);
      node.action = step.action;
      node.host_function = step.host_function;
      node.host_data = step.host_data;
      node.event = step.event;
      previous = {node.handle};
    }
    capture_node(stream, abi::kNodeGraph).children = {child->handle};
    return kSuccess;
  }
  for (const GraphExec::Step& step : exec.steps) {
    if (step.type == abi::kNodeEventRecord) {
      if (Event* event = sim().events.find(step.event)) record_event(*event, stream, abi::kEventRecordDefault);
    } else if (step.type == abi::kNodeWaitEvent) {
      if (Event* event = sim().events.find(step.event)) wait_event(stream, *event, abi::kEventWaitDefault);
    } else {
      run_work(stream, step.type, step.action);
      // What it writes is not what the operation around the launch of the graph writes.
      if (step.type == abi::kNodeKernel) ++stream.device->forgettings;
      if (step.host_function) deferred.emplace_back(step.host_function, step.host_data);
    }
  }
  return kSuccess;
}

void release_user_object(std::uint64_t handle, unsigned count, Deferred& deferred) {
  UserObject* object = sim().user_objects.find(handle);
  if (!object) return;
  object->references -= count < object->references ? count : object->references;
  if (object->references > 0) return;
  if (object->destroy) deferred.emplace_back(object->destroy, object->object);
  sim().user_objects.destroy(handle);
}

}  // namespace poolalloc::simgpu
