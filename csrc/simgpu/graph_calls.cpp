// The runtime's graph calls: instantiate, launch, destroy, inspect, and building graphs by hand as far as torch does.
#include <cstdio>
#include <vector>

#include "simgpu/capture.h"
#include "simgpu/cuda_abi.h"
#include "simgpu/graph.h"
#include "simgpu/report.h"
#include "simgpu/simulator.h"

using namespace poolalloc::simgpu;

namespace {

void* handle_pointer(std::uint64_t handle) { return reinterpret_cast<void*>(handle); }

// A graph or an executable graph as a caller means it; a handle that is not live is a violation.
template <class Table>
auto* resolve(Table& table, const void* handle, const char* kind, const char* caller) {
  auto* found = table.find(handle);
  if (!found) violation(kind, "%s: %p is not a live handle", caller, handle);
  return found;
}

// Runs a call under the lock, then what it deferred without it.
template <class F>
int deferring(F&& call) {
  return runtime_call([&] {
    Deferred deferred;
    Error error;
    {
      const Lock lock = lock_sim();
      error = call(deferred);
    }
    for (const auto& [function, data] : deferred) function(data);
    return error;
  });
}

int instantiate_call(void** exec, void* graph, unsigned long long flags, const char* caller) {
  return runtime_call([&] {
    const Lock lock = lock_sim();
    if (!exec) return kInvalidValue;
    Graph* found = resolve(sim().graphs, graph, "use_after_destroy_graph", caller);
    if (!found) return kInvalidValue;
    *exec = handle_pointer(instantiate(*found, flags)->handle);
    return kSuccess;
  });
}

// Node handles of a graph: as many as fit, or only their number.
Error list_nodes(const std::vector<std::uint64_t>& nodes, void** out, std::size_t* count) {
  if (!count) return kInvalidValue;
  if (out) {
    const std::size_t room = *count;
    for (std::size_t i = 0; i < room; ++i) out[i] = i < nodes.size() ? handle_pointer(nodes[i]) : nullptr;
  }
  *count = nodes.size();
  return kSuccess;
}

// The nodes a new one follows, checked to be the graph's.
bool read_dependencies(const Graph& graph, void* const* dependencies, std::size_t count,
                       std::vector<std::uint64_t>& nodes) {
  for (std::size_t i = 0; i < count; ++i) {
    const GraphNode* node = sim().nodes.find(dependencies[i]);
    if (!node || node->graph != graph.handle) return false;
    nodes.push_back(node->handle);
  }
  return true;
}

Error add_node_call(void** out, void* graph, void* const* dependencies, std::size_t count,
                    abi::GraphNodeParams* parameters) {
  Graph* found = sim().graphs.find(graph);
  std::vector<std::uint64_t> nodes;
  if (!out || !found || !parameters || !read_dependencies(*found, dependencies, count, nodes)) return kInvalidValue;
  std::vector<std::uint64_t> children;
  switch (parameters->type) {
    case abi::kNodeKernel:
    case abi::kNodeEmpty:
      break;
    case abi::kNodeHost:
      if (!parameters->host.function) return kInvalidValue;
      break;
    case abi::kNodeGraph:
      if (!sim().graphs.find(parameters->child.graph)) return kInvalidValue;
      children = {reinterpret_cast<std::uint64_t>(parameters->child.graph)};
      break;
    case abi::kNodeConditional: {
      auto& conditional = parameters->conditional;
      static thread_local std::vector<void*> bodies;
      bodies.clear();
      for (unsigned i = 0; i < conditional.size; ++i) {
        Graph* body = create_graph();
        body->inside_node = true;
        children.push_back(body->handle);
        bodies.push_back(handle_pointer(body->handle));
      }
      conditional.graphs_out = bodies.data();
      break;
    }
    default:
      unsupported("cudaGraphAddNode with this type of node");
      return kNotSupported;
  }
  GraphNode& node = add_node(*found, static_cast<abi::NodeType>(parameters->type), std::move(nodes));
  if (parameters->type == abi::kNodeHost) {
    node.host_function = parameters->host.function;
    node.host_data = parameters->host.data;
  }
  node.children = std::move(children);
  *out = handle_pointer(node.handle);
  return kSuccess;
}

}  // namespace

// --- making and destroying ---------------------------------------------------------------------------------------

SIMGPU_API int cudaGraphCreate(void** graph, unsigned flags) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    if (!graph || flags != 0) return kInvalidValue;
    const Lock lock = lock_sim();
    *graph = handle_pointer(create_graph()->handle);
    return kSuccess;
  });
}

SIMGPU_API int cudaGraphDestroy(void* graph) {
  SIM_COUNT_CALL();
  return deferring([&](Deferred& deferred) {
    Graph* found = resolve(sim().graphs, graph, "use_after_destroy_graph", "cudaGraphDestroy");
    if (!found || found->inside_node) return kInvalidValue;
    destroy_graph(*found, deferred);
    return kSuccess;
  });
}

SIMGPU_API int cudaGraphAddNode(void** node, void* graph, void* const* dependencies, const abi::GraphEdgeData*,
                                std::size_t count, abi::GraphNodeParams* parameters) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    return add_node_call(node, graph, dependencies, count, parameters);
  });
}

SIMGPU_API int cudaGraphAddEmptyNode(void** node, void* graph, void* const* dependencies, std::size_t count) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    abi::GraphNodeParams parameters{};
    parameters.type = abi::kNodeEmpty;
    return add_node_call(node, graph, dependencies, count, &parameters);
  });
}

SIMGPU_API int cudaGraphAddHostNode(void** node, void* graph, void* const* dependencies, std::size_t count,
                                    const abi::HostNodeParams* host) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    if (!host) return kInvalidValue;
    const Lock lock = lock_sim();
    abi::GraphNodeParams parameters{};
    parameters.type = abi::kNodeHost;
    parameters.host.function = host->function;
    parameters.host.data = host->data;
    return add_node_call(node, graph, dependencies, count, &parameters);
  });
}

SIMGPU_API int cudaGraphAddDependencies(void* graph, void* const* from, void* const* to, const abi::GraphEdgeData*,
                                        std::size_t count) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    const Graph* found = sim().graphs.find(graph);
    std::vector<std::uint64_t> first, second;
    if (!found || !read_dependencies(*found, from, count, first) || !read_dependencies(*found, to, count, second)) {
      return kInvalidValue;
    }
    for (std::size_t i = 0; i < count; ++i) sim().nodes.find(second[i])->dependencies.push_back(first[i]);
    return kSuccess;
  });
}

// A conditional's value is computed on the device, so no body ever runs; see flatten() in graph.cpp.
SIMGPU_API int cudaGraphConditionalHandleCreate(std::uint64_t* handle, void* graph, unsigned, unsigned) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    if (!handle || !sim().graphs.find(graph)) return kInvalidValue;
    static std::uint64_t next = 0;
    *handle = ++next;
    return kSuccess;
  });
}

// --- executable graphs -------------------------------------------------------------------------------------------

SIMGPU_API int cudaGraphInstantiate(void** exec, void* graph, unsigned long long flags) {
  SIM_COUNT_CALL();
  return instantiate_call(exec, graph, flags, "cudaGraphInstantiate");
}

SIMGPU_API int cudaGraphInstantiateWithFlags(void** exec, void* graph, unsigned long long flags) {
  SIM_COUNT_CALL();
  return instantiate_call(exec, graph, flags, "cudaGraphInstantiateWithFlags");
}

SIMGPU_API int cudaGraphInstantiateWithParams(void** exec, void* graph, abi::GraphInstantiateParams* parameters) {
  SIM_COUNT_CALL();
  if (!parameters) return runtime_call([] { return kInvalidValue; });
  parameters->errorNode = nullptr;
  parameters->result = 0;
  return instantiate_call(exec, graph, parameters->flags, "cudaGraphInstantiateWithParams");
}

SIMGPU_API int cudaGraphExecDestroy(void* exec) {
  SIM_COUNT_CALL();
  return deferring([&](Deferred& deferred) {
    GraphExec* found = resolve(sim().execs, exec, "use_after_destroy_graph", "cudaGraphExecDestroy");
    if (!found) return kInvalidValue;
    destroy_exec(*found, deferred);
    return kSuccess;
  });
}

SIMGPU_API int cudaGraphLaunch(void* exec, void* stream) {
  SIM_COUNT_CALL();
  return deferring([&](Deferred& deferred) {
    GraphExec* found = resolve(sim().execs, exec, "use_after_destroy_graph", "cudaGraphLaunch");
    Stream* on = resolve_stream(stream, "cudaGraphLaunch");
    if (!found) return kInvalidValue;
    return on ? launch_graph(*found, *on, deferred) : kInvalidHandle;
  });
}

SIMGPU_API int cudaGraphUpload(void* exec, void* stream) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    if (!resolve(sim().execs, exec, "use_after_destroy_graph", "cudaGraphUpload")) return kInvalidValue;
    return resolve_stream(stream, "cudaGraphUpload") ? kSuccess : kInvalidHandle;
  });
}

SIMGPU_API int cudaGraphExecGetFlags(void* exec, unsigned long long* flags) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    const GraphExec* found = sim().execs.find(exec);
    if (!found || !flags) return kInvalidValue;
    *flags = found->flags;
    return kSuccess;
  });
}

// --- inspection --------------------------------------------------------------------------------------------------

SIMGPU_API int cudaGraphGetNodes(void* graph, void** nodes, std::size_t* count) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    const Graph* found = resolve(sim().graphs, graph, "use_after_destroy_graph", "cudaGraphGetNodes");
    return found ? list_nodes(found->nodes, nodes, count) : kInvalidValue;
  });
}

SIMGPU_API int cudaGraphGetRootNodes(void* graph, void** nodes, std::size_t* count) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    const Graph* found = resolve(sim().graphs, graph, "use_after_destroy_graph", "cudaGraphGetRootNodes");
    if (!found) return kInvalidValue;
    std::vector<std::uint64_t> roots;
    for (const std::uint64_t node : found->nodes) {
      if (sim().nodes.find(node)->dependencies.empty()) roots.push_back(node);
    }
    return list_nodes(roots, nodes, count);
  });
}

SIMGPU_API int cudaGraphNodeGetDependencies(void* node, void** dependencies, abi::GraphEdgeData* edges,
                                            std::size_t* count) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    const GraphNode* found = sim().nodes.find(node);
    if (!found || !count) return kInvalidValue;
    if (edges) {
      for (std::size_t i = 0; i < *count; ++i) edges[i] = {};
    }
    return list_nodes(found->dependencies, dependencies, count);
  });
}

SIMGPU_API int cuGraphNodeGetDependencies(void* node, void** dependencies, std::size_t* count) {
  SIM_COUNT_CALL();
  return driver_call([&] {
    const Lock lock = lock_sim();
    const GraphNode* found = sim().nodes.find(node);
    return found && count ? list_nodes(found->dependencies, dependencies, count) : kInvalidValue;
  });
}

SIMGPU_API int cudaGraphNodeGetType(void* node, int* type) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    const GraphNode* found = sim().nodes.find(node);
    if (!found || !type) return kInvalidValue;
    *type = found->type;
    return kSuccess;
  });
}

SIMGPU_API int cudaGraphDebugDotPrint(void* graph, const char* path, unsigned) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    const Graph* found = resolve(sim().graphs, graph, "use_after_destroy_graph", "cudaGraphDebugDotPrint");
    if (!found || !path) return kInvalidValue;
    std::FILE* file = std::fopen(path, "w");
    if (!file) return kOperatingSystem;
    std::fprintf(file, "digraph simgpu {\n");
    for (const std::uint64_t handle : found->nodes) {
      const GraphNode& node = *sim().nodes.find(handle);
      std::fprintf(file, "  n%llx [label=\"type %d\"];\n", static_cast<unsigned long long>(handle), node.type);
      for (const std::uint64_t before : node.dependencies) {
        std::fprintf(file, "  n%llx -> n%llx;\n", static_cast<unsigned long long>(before),
                     static_cast<unsigned long long>(handle));
      }
    }
    std::fprintf(file, "}\n");
    return std::fclose(file) == 0 ? kSuccess : kOperatingSystem;
  });
}

// --- objects that graphs keep alive ------------------------------------------------------------------------------

SIMGPU_API int cudaUserObjectCreate(void** object, void* pointer, abi::HostFunction destroy, unsigned references,
                                    unsigned flags) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    constexpr unsigned kNoDestructorSync = 1;  // the one flag there is, and it must be given
    if (!object || !destroy || references == 0 || flags != kNoDestructorSync) return kInvalidValue;
    const Lock lock = lock_sim();
    *object = handle_pointer(sim().user_objects.create(UserObject{pointer, destroy, references}).first);
    return kSuccess;
  });
}

SIMGPU_API int cudaUserObjectRetain(void* object, unsigned count) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    const Lock lock = lock_sim();
    UserObject* found = sim().user_objects.find(object);
    if (!found) return kInvalidValue;
    found->references += count;
    return kSuccess;
  });
}

SIMGPU_API int cudaUserObjectRelease(void* object, unsigned count) {
  SIM_COUNT_CALL();
  return deferring([&](Deferred& deferred) {
    if (!sim().user_objects.find(object)) return kInvalidValue;
    release_user_object(reinterpret_cast<std::uint64_t>(object), count, deferred);
    return kSuccess;
  });
}

SIMGPU_API int cudaGraphRetainUserObject(void* graph, void* object, unsigned count, unsigned flags) {
  SIM_COUNT_CALL();
  return runtime_call([&] {
    constexpr unsigned kMove = 1;  // the caller's references become the graph's
    const Lock lock = lock_sim();
    Graph* found = sim().graphs.find(graph);
    UserObject* kept = sim().user_objects.find(object);
    if (!found || !kept || flags > kMove || (flags == kMove && kept->references < count)) return kInvalidValue;
    if (flags != kMove) kept->references += count;
    found->user_objects[reinterpret_cast<std::uint64_t>(object)] += count;
    return kSuccess;
  });
}

SIMGPU_API int cudaGraphReleaseUserObject(void* graph, void* object, unsigned count) {
  SIM_COUNT_CALL();
  return deferring([&](Deferred& deferred) {
    Graph* found = sim().graphs.find(graph);
    if (!found) return kInvalidValue;
    const auto held = found->user_objects.find(reinterpret_cast<std::uint64_t>(object));
    if (held == found->user_objects.end() || held->second < count) return kInvalidValue;
    held->second -= count;
    if (held->second == 0) found->user_objects.erase(held);
    release_user_object(reinterpret_cast<std::uint64_t>(object), count, deferred);
    return kSuccess;
  });
}
