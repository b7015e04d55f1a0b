// An intrusive ordered set: a treap whose priorities come from hashing the key's address part, so it needs no memory,
// no random numbers, and gives the same shape for the same contents.
//
// Node supplies `Node* left`, `Node* right`, `std::uint32_t priority`; Order supplies `static bool less(const Node&,
// const Node&)`, a strict total order. Expected O(log n). Source: Seidel and Aragon, "Randomized search trees" (1996).
#pragma once

#include <cstdint>

namespace poolalloc {

// A well-mixed 32-bit priority for a key (the finalizer of MurmurHash3).
inline constexpr std::uint32_t tree_priority(std::uint64_t key) {
  key ^= key >> 33;
  key *= 0xff51afd7ed558ccdULL;
  key ^= key >> 33;
  return static_cast<std::uint32_t>(key >> 16);
}

template <typename Node, typename Order>
class OrderedTree {
 public:
  bool empty() const { return root_ == nullptr; }

  void insert(Node* node) {
    Node** link = &root_;
    while (*link != nullptr && (*link)->priority >= node->priority)
      link = Order::less(*node, **link) ? &(*link)->left : &(*link)->right;
    Node* below = *link;
    *link = node;
    split(below, *node, &node->left, &node->right);
  }

  void remove(Node* node) {
    Node** link = &root_;
    while (*link != node) link = Order::less(*node, **link) ? &(*link)->left : &(*link)->right;
    *link = merge(node->left, node->right);
  }

  Node* first() const {
    Node* node = root_;
    while (node != nullptr && node->left != nullptr) node = node->left;
    return node;
  }

  // The smallest node for which `at_least(node)` holds; at_least must be monotone in the order.
  template <typename Predicate>
  Node* first_that(Predicate at_least) const {
    Node* found = nullptr;
    for (Node* node = root_; node != nullptr;) {
      if (at_least(*node)) {
        found = node;
        node = node->left;
      } else {
        node = node->right;
      }
    }
    return found;
  }

  Node* after(const Node& previous) const {
    return first_that([&](const Node& node) { return Order::less(previous, node); });
  }

  // Throws nothing; returns false if the order or the heap property is broken, else counts the nodes.
  bool valid(std::uint64_t* count) const { return valid(root_, nullptr, nullptr, count); }

 private:
  // Splits `tree` into the nodes before and after `pivot`, which is in neither.
  static void split(Node* tree, const Node& pivot, Node** before, Node** after) {
    while (tree != nullptr) {
      if (Order::less(*tree, pivot)) {
        *before = tree;
        before = &tree->right;
        tree = tree->right;
      } else {
        *after = tree;
        after = &tree->left;
        tree = tree->left;
      }
    }
    *before = nullptr;
    *after = nullptr;
  }

  static Node* merge(Node* before, Node* after) {
    Node* result = nullptr;
    Node** link = &result;
    while (before != nullptr && after != nullptr) {
      if (before->priority >= after->priority) {
        *link = before;
        link = &before->right;
        before = before->right;
      } else {
        *link = after;
        link = &after->left;
        after = after->left;
      }
    }
    *link = before != nullptr ? before : after;
    return result;
  }

  static bool valid(const Node* node, const Node* low, const Node* high, std::uint64_t* count) {
    if (node == nullptr) return true;
    if (low != nullptr && !Order::less(*low, *node)) return false;
    if (high != nullptr && !Order::less(*node, *high)) return false;
    for (const Node* child : {node->left, node->right})
      if (child != nullptr && child->priority > node->priority) return false;
    ++*count;
    return valid(node->left, low, node, count) && valid(node->right, node, high, count);
  }

  Node* root_ = nullptr;
};

}  // namespace poolalloc
