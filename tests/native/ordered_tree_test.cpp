// The intrusive tree against std::set, and its depth.
#include "core/base/ordered_tree.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <set>
#include <vector>

using namespace poolalloc;

namespace {

struct Node {
  Node* left = nullptr;
  Node* right = nullptr;
  std::uint32_t priority = 0;
  std::uint64_t key = 0;
};
struct Order {
  static bool less(const Node& a, const Node& b) { return a.key < b.key; }
};
using Tree = OrderedTree<Node, Order>;

std::vector<Node> nodes(std::size_t count, std::uint32_t priority_mask = ~0u) {
  std::vector<Node> made(count);
  for (std::size_t i = 0; i < count; ++i) {
    made[i].key = i;
    made[i].priority = tree_priority(i) & priority_mask;
  }
  return made;
}

void check_contents(const Tree& tree, const std::set<std::uint64_t>& expected) {
  std::uint64_t count = 0;
  CHECK((tree.valid(&count) && count == expected.size()));
  CHECK(tree.empty() == expected.empty());
  const Node* node = tree.first();
  for (std::uint64_t key : expected) {
    CHECK((node != nullptr && node->key == key));
    node = tree.after(*node);
  }
  CHECK(node == nullptr);
}

void check_random_changes(std::uint32_t priority_mask) {
  std::mt19937 random(7);
  std::vector<Node> all = nodes(300, priority_mask);
  std::set<std::uint64_t> expected;
  Tree tree;
  for (int step = 0; step < 6000; ++step) {
    Node& node = all[random() % all.size()];
    if (expected.erase(node.key) != 0) {
      tree.remove(&node);
    } else {
      expected.insert(node.key);
      tree.insert(&node);
    }
    const std::uint64_t wanted = random() % (all.size() + 1);
    const auto least = expected.lower_bound(wanted);
    const Node* found = tree.first_that([&](const Node& other) { return other.key >= wanted; });
    CHECK((found == nullptr) == (least == expected.end()));
    CHECK((found == nullptr || found->key == *least));
    if (step % 50 == 0) check_contents(tree, expected);
  }
  check_contents(tree, expected);
}

TEST_CASE("random insertions and removals leave what a set has") { check_random_changes(~0u); }

TEST_CASE("equal priorities cost balance only") {
  check_random_changes(0x3);
  check_random_changes(0);
}

TEST_CASE("an empty tree finds nothing") {
  Tree tree;
  CHECK((tree.empty() && tree.first() == nullptr));
  CHECK(tree.first_that([](const Node&) { return true; }) == nullptr);
  std::uint64_t count = 0;
  CHECK((tree.valid(&count) && count == 0));
}

TEST_CASE("valid sees a broken order and a broken heap") {
  std::vector<Node> all = nodes(50);
  Tree tree;
  for (Node& node : all) tree.insert(&node);
  std::uint64_t count = 0;
  CHECK(tree.valid(&count));
  all[20].key = 40;
  CHECK(!tree.valid(&count));
  all[20].key = 20;
  Node* leaf = nullptr;
  Node* root = &all[0];
  for (Node& node : all) {
    if (node.left == nullptr && node.right == nullptr) leaf = &node;
    if (node.priority > root->priority) root = &node;
  }
  CHECK((leaf != nullptr && leaf != root));
  leaf->priority = root->priority + 1;
  CHECK(!tree.valid(&count));
}

TEST_CASE("keys in order make no deep tree") {
  constexpr std::size_t kCount = 100'000;
  std::vector<Node> all = nodes(kCount);
  Tree tree;
  for (Node& node : all) tree.insert(&node);
  int deepest = 0;
  for (std::uint64_t wanted = 0; wanted < kCount; wanted += 97) {
    int visited = 0;
    tree.first_that([&](const Node& node) {
      ++visited;
      return node.key >= wanted;
    });
    deepest = std::max(deepest, visited);
  }
  CHECK(deepest < 4 * std::log2(kCount));
}

}  // namespace
