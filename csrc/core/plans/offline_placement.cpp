#include "core/plans/offline_placement.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>
#include <unordered_map>

#include "core/base/errors.h"

namespace poolalloc {

namespace {

using Index = std::uint32_t;
using Clock = std::chrono::steady_clock;

// The blocks, with time cut into sections between one birth or death and the next.
class Problem {
 public:
  struct Span {
    Index first, end;  // sections [first, end)
  };
  struct Block {
    Bytes size = 0;
    std::vector<Span> spans;  // that it is alive in; one, but of a group
  };

  explicit Problem(const std::vector<Lifetime>& lifetimes) {
    std::vector<std::int64_t> times;
    for (const Lifetime& life : lifetimes) {
      if (life.birth >= life.death) throw UsageError("a lifetime must end after it begins");
      if (life.size == 0) throw UsageError("a block of 0 bytes has no place");
      times.push_back(life.birth);
      times.push_back(life.death);
    }
    std::sort(times.begin(), times.end());
    times.erase(std::unique(times.begin(), times.end()), times.end());
    const auto section = [&](std::int64_t time) {
      return static_cast<Index>(std::lower_bound(times.begin(), times.end(), time) - times.begin());
    };
    std::unordered_map<std::int64_t, Index> groups;
    for (const Lifetime& life : lifetimes) {
      auto number = static_cast<Index>(blocks.size());
      if (life.group >= 0) number = groups.try_emplace(life.group, number).first->second;
      if (number == blocks.size()) blocks.push_back({life.size, {}});
      if (blocks[number].size != life.size) throw UsageError("the lifetimes of a group must have one size");
      blocks[number].spans.push_back({section(life.birth), section(life.death)});
      block_of.push_back(number);
    }
    std::vector<std::int64_t> changes(times.size());
    for (Block& block : blocks) {
      unite(block.spans);
      simple &= block.spans.size() == 1;
      first.push_back(block.spans.front().first);
      end.push_back(block.spans.back().end);
      for (const Span& span : block.spans) {
        changes[span.first] += static_cast<std::int64_t>(block.size);
        changes[span.end] -= static_cast<std::int64_t>(block.size);
      }
    }
    std::partial_sum(changes.begin(), changes.end(), changes.begin());
    for (std::size_t at = 0; at + 1 < changes.size(); ++at) loads.push_back(static_cast<Bytes>(changes[at]));
    for (const Bytes bytes : loads) load = std::max(load, bytes);
    find_neighbours();
  }

  std::size_t size() const { return blocks.size(); }

  std::vector<Block> blocks;
  std::vector<Index> block_of;                 // of each lifetime
  bool simple = true;                          // every block is alive in one span
  std::vector<Index> first, end;               // sections of each block: [first, end), and perhaps gaps between
  std::vector<Bytes> loads;                    // of each section
  Bytes load = 0;                              // the largest of them
  std::vector<std::vector<Index>> neighbours;  // of each block, those alive at some time with it

 private:
  static void unite(std::vector<Span>& spans) {
    std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.first < b.first; });
    std::size_t kept = 0;
    for (const Span& span : spans) {
      if (kept != 0 && span.first <= spans[kept - 1].end)
        spans[kept - 1].end = std::max(spans[kept - 1].end, span.end);
      else
        spans[kept++] = span;
    }
    spans.resize(kept);
  }

  void find_neighbours() {
    struct Life {
      Span span;
      Index block;
    };
    neighbours.resize(size());
    std::vector<Life> by_birth, alive;
    for (Index block = 0; block < size(); ++block)
      for (const Span& span : blocks[block].spans) by_birth.push_back({span, block});
    std::stable_sort(by_birth.begin(), by_birth.end(),
                     [](const Life& a, const Life& b) { return a.span.first < b.span.first; });
    for (const Life& life : by_birth) {
      std::erase_if(alive, [&](const Life& other) { return other.span.end <= life.span.first; });
      for (const Life& other : alive) {
        neighbours[life.block].push_back(other.block);
        neighbours[other.block].push_back(life.block);
      }
      alive.push_back(life);
    }
    if (simple) return;
    for (auto& near : neighbours) {  // two may meet at several times
      std::sort(near.begin(), near.end());
      near.erase(std::unique(near.begin(), near.end()), near.end());
    }
  }
};

// --- first fit ---------------------------------------------------------------------------------------------------

constexpr Bytes kNowhere = ~Bytes{0};

class FirstFit {
 public:
  explicit FirstFit(const Problem& problem) : problem_(problem) {}

  // Places the blocks in this order; stops, and returns kNowhere, once the height exceeds `at_most`.
  Bytes place(const std::vector<Index>& order, Bytes at_most) {
    offsets.assign(problem_.size(), kNowhere);
    Bytes height = 0;
    for (const Index block : order) {
      const Bytes offset = lowest(block);
      offsets[block] = offset;
      height = std::max(height, offset + problem_.blocks[block].size);
      if (height > at_most) return kNowhere;
    }
    return height;
  }

  std::vector<Bytes> offsets;

 private:
  Bytes lowest(Index block) {
    taken_.clear();
    for (const Index other : problem_.neighbours[block])
      if (offsets[other] != kNowhere) taken_.emplace_back(offsets[other], offsets[other] + problem_.blocks[other].size);
    std::sort(taken_.begin(), taken_.end());
    Bytes offset = 0;
    for (const auto& [start, end] : taken_) {
      if (start >= offset + problem_.blocks[block].size) break;
      offset = std::max(offset, end);
    }
    return offset;
  }

  const Problem& problem_;
  std::vector<std::pair<Bytes, Bytes>> taken_;
};

// --- search ------------------------------------------------------------------------------------------------------

// Whether all blocks can be placed below a height. Blocks are placed in order of offset, each at its floor: the end of
// what lies under it. Any placement can be brought into this form by letting blocks fall.
class Search {
 public:
  Search(const Problem& problem, Bytes height, const std::vector<Index>& rank)
      : problem_(problem),
        height_(height),
        rank_(rank),
        floors_(problem.size(), 0),
        section_floors_(problem.loads.size(), 0),
        section_left_(problem.loads),
        starts_(problem.loads.size()),
        thinnest_(problem.size(), kNowhere / 2),
        offsets(problem.size(), kNowhere) {}

  // False if there is none, or if the search gave up after so many placements or at that time.
  bool run(std::uint64_t at_most, Clock::time_point until) {
    budget_ = at_most;
    until_ = until;
    for (Index block = 0; block < problem_.size(); ++block)
      for (const Index other : problem_.neighbours[block])
        thinnest_[block] = std::min(thinnest_[block], problem_.blocks[other].size);
    std::vector<Index> all(problem_.size());
    std::iota(all.begin(), all.end(), 0);
    std::sort(all.begin(), all.end(), [&](Index a, Index b) { return problem_.first[a] < problem_.first[b]; });
    return solve(all, 0, 0);
  }

 private:
  // Blocks in order of birth, none of them placed, that no offset below `lowest` may take.
  bool solve(const std::vector<Index>& blocks, Bytes lowest, Index last) {
    if (blocks.empty()) return true;
    // Parts that no block connects are problems of their own.
    const std::size_t placed = placed_.size();
    std::vector<Index> part;
    Index end = 0;
    for (std::size_t i = 0; i <= blocks.size(); ++i) {
      if (i == blocks.size() || (!part.empty() && problem_.first[blocks[i]] >= end)) {
        if (!solve_part(part, lowest, last)) {
          while (placed_.size() > placed) take_back();
          return false;
        }
        part.clear();
      }
      if (i < blocks.size()) {
        end = part.empty() ? problem_.end[blocks[i]] : std::max(end, problem_.end[blocks[i]]);
        part.push_back(blocks[i]);
      }
    }
    return true;
  }

  Bytes start(Index block, Bytes lowest, Index last) const {
    if (floors_[block] > lowest || (floors_[block] == lowest && rank_[block] >= last)) return floors_[block];
    return lowest + thinnest_[block];
  }

  bool solve_part(const std::vector<Index>& blocks, Bytes lowest, Index last) {
    Bytes ceiling = kNowhere;  // what begins at or above it can wait: some block fits under it
    for (const Index block : blocks) ceiling = std::min(ceiling, floors_[block] + problem_.blocks[block].size);
    std::vector<Index> candidates;
    for (const Index block : blocks)
      if (start(block, lowest, last) == floors_[block] && floors_[block] < ceiling) candidates.push_back(block);
    std::sort(candidates.begin(), candidates.end(), [&](Index a, Index b) {
      return floors_[a] != floors_[b] ? floors_[a] < floors_[b] : rank_[a] < rank_[b];
    });
    for (const Index block : candidates) {
      if (budget_ == 0) return false;
      if (--budget_ % 1024 == 0 && Clock::now() >= until_) budget_ = 0;
      if (place(block, blocks)) {
        std::vector<Index> rest;
        rest.reserve(blocks.size() - 1);
        for (const Index other : blocks)
          if (other != block) rest.push_back(other);
        if (solve(rest, floors_[block], rank_[block] + 1)) return true;
      }
      take_back();
    }
    return false;
  }

  // False if a section can no longer hold what is left of it. To be taken back in either case.
  bool place(Index block, const std::vector<Index>& blocks) {
    const Bytes offset = floors_[block], end = offset + problem_.blocks[block].size;
    offsets[block] = offset;
    placed_.push_back(block);
    marks_.push_back(undo_.size());
    bool possible = true;
    for (Index at = problem_.first[block]; at < problem_.end[block]; ++at) {
      undo_.emplace_back(at, section_floors_[at]);
      section_floors_[at] = end;
      section_left_[at] -= problem_.blocks[block].size;
      possible &= end + section_left_[at] <= height_;
    }
    undo_floors_.emplace_back();
    for (const Index other : problem_.neighbours[block]) {
      if (offsets[other] != kNowhere || floors_[other] >= end) continue;
      undo_floors_.back().emplace_back(other, floors_[other]);
      floors_[other] = end;
      possible &= end + problem_.blocks[other].size <= height_;
    }
    return possible && sections_hold(blocks, offset, rank_[block] + 1);
  }

  // In each section, what is left lies above the lowest place that any block of it can still take.
  bool sections_hold(const std::vector<Index>& blocks, Bytes lowest, Index last) {
    Index begin = problem_.first[blocks.front()], end = 0;
    for (const Index block : blocks) end = std::max(end, problem_.end[block]);
    std::fill(starts_.begin() + begin, starts_.begin() + end, kNowhere);
    for (const Index block : blocks) {
      if (offsets[block] != kNowhere) continue;
      const Bytes low = start(block, lowest, last);
      for (Index at = problem_.first[block]; at < problem_.end[block]; ++at) starts_[at] = std::min(starts_[at], low);
    }
    for (Index at = begin; at < end; ++at)
      if (starts_[at] != kNowhere && starts_[at] + section_left_[at] > height_) return false;
    return true;
  }

  void take_back() {
    const Index block = placed_.back();
    placed_.pop_back();
    for (; undo_.size() > marks_.back(); undo_.pop_back()) {
      section_floors_[undo_.back().first] = undo_.back().second;
      section_left_[undo_.back().first] += problem_.blocks[block].size;
    }
    marks_.pop_back();
    for (const auto& [other, floor] : undo_floors_.back()) floors_[other] = floor;
    undo_floors_.pop_back();
    offsets[block] = kNowhere;
  }

  const Problem& problem_;
  const Bytes height_;
  const std::vector<Index>& rank_;
  std::vector<Bytes> floors_;
  std::vector<Bytes> section_floors_, section_left_, starts_, thinnest_;
  std::vector<std::pair<Index, Bytes>> undo_;
  std::vector<std::vector<std::pair<Index, Bytes>>> undo_floors_;
  std::vector<std::size_t> marks_;
  std::vector<Index> placed_;
  std::uint64_t budget_ = 0;
  Clock::time_point until_;

 public:
  std::vector<Bytes> offsets;
};

// --- the best of them within the time ------------------------------------------------------------------------------

// Orders worth a try, the largest first by each measure.
std::vector<std::vector<Index>> orders_of(const Problem& problem) {
  std::vector<double> crowd(problem.size());  // the load of the fullest section that a block spans
  std::vector<double> length(problem.size());
  for (Index block = 0; block < problem.size(); ++block) {
    for (const Problem::Span& span : problem.blocks[block].spans) {
      length[block] += span.end - span.first;
      const auto first = problem.loads.begin() + span.first;
      crowd[block] =
          std::max(crowd[block], static_cast<double>(*std::max_element(first, first + span.end - span.first)));
    }
  }
  const auto span = [&](Index block) { return length[block]; };
  const auto bytes = [&](Index block) { return static_cast<double>(problem.blocks[block].size); };
  using Measure = std::function<std::pair<double, double>(Index)>;
  const Measure measures[] = {
      [&](Index block) { return std::pair(bytes(block), span(block)); },
      [&](Index block) { return std::pair(bytes(block) * span(block), 0.0); },
      [&](Index block) { return std::pair(span(block), bytes(block)); },
      [&](Index block) { return std::pair(-static_cast<double>(problem.first[block]), bytes(block)); },
      [&](Index block) { return std::pair(crowd[block], bytes(block) * span(block)); },
      [&](Index block) { return std::pair(crowd[block], span(block)); },
      [&](Index block) { return std::pair(span(block), crowd[block]); },
  };
  std::vector<std::vector<Index>> orders;
  for (const Measure& measure : measures) {
    std::vector<std::pair<double, double>> keys(problem.size());
    for (Index block = 0; block < problem.size(); ++block) keys[block] = measure(block);
    std::vector<Index>& order = orders.emplace_back(problem.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) { return keys[a] > keys[b]; });
  }
  return orders;
}

class Best {
 public:
  Best(const Problem& problem, const PlacementEffort& effort)
      : problem_(problem), until_(Clock::now() + effort.time), random_(effort.seed), fit_(problem) {
    found.load = problem.load;
    goal_ = std::max(problem.load, effort.enough);
    found.height = kNowhere;
  }

  void first_fit() {
    orders_ = orders_of(problem_);
    for (const std::vector<Index>& order : orders_) {
      if (done() && found.height != kNowhere) return;
      if (keep(fit_.place(order, kNowhere), fit_.offsets, "first fit")) best_order_ = order;
    }
  }

  // A block that reaches the top, or one that is alive with it, moves in the order; what is not much worse is kept.
  void reorder(std::chrono::nanoseconds time) {
    const auto started = Clock::now(), until = std::min(until_, started + time);
    std::vector<Index> order = best_order_, tried;
    Bytes height = fit_.place(order, kNowhere);
    std::vector<Bytes> offsets = fit_.offsets;
    for (auto now = started; now < until && found.height > goal_; now = Clock::now()) {
      std::vector<Index> top;
      for (Index block = 0; block < problem_.size(); ++block)
        if (offsets[block] + problem_.blocks[block].size == height) top.push_back(block);
      Index moved = top[random_() % top.size()];
      const auto& near = problem_.neighbours[moved];
      if (!near.empty() && random_() % 3 == 0) moved = near[random_() % near.size()];
      tried = order;
      const auto from = std::find(tried.begin(), tried.end(), moved);
      const auto ahead = static_cast<std::uint64_t>(from - tried.begin()) + 1;
      const auto to =
          tried.begin() + static_cast<std::ptrdiff_t>(random_() % (random_() % 4 != 0 ? ahead : tried.size()));
      if (to <= from)
        std::rotate(to, from, from + 1);
      else
        std::rotate(from, from + 1, to + 1);
      // Simulated annealing: a hundredth of the height at first, nothing at the end.
      const double left = std::chrono::duration<double>(until - now) / std::chrono::duration<double>(until - started);
      const double chance = std::uniform_real_distribution<double>(1e-9, 1)(random_);
      const double slack = -std::log(chance) * 0.01 * left * static_cast<double>(height);
      const Bytes now_high = fit_.place(tried, height + static_cast<Bytes>(slack));
      if (now_high == kNowhere) continue;
      height = now_high;
      order.swap(tried);
      offsets = fit_.offsets;
      if (keep(height, offsets, "reordering")) best_order_ = order;
    }
  }

  // For heights from the goal up to the best so far, with more and more patience.
  void search() {
    if (problem_.size() > kLargestSearch || !problem_.simple) return;
    std::vector<std::vector<Index>> ranks;
    ranks.reserve(2 * orders_.size());
    for (const std::vector<Index>& order : orders_) ranks.push_back(rank_of(order));
    for (std::uint64_t patience = 10'000; !done(); patience *= 2) {
      const Bytes gap = found.height - goal_;
      for (const Bytes above : {Bytes{0}, gap / 16, gap / 4, gap / 2}) {
        const Bytes height = goal_ + above;
        for (const std::vector<Index>& rank : ranks) {
          if (done() || height >= found.height) break;
          Search search(problem_, height, rank);
          if (search.run(patience, until_)) keep(height_of(search.offsets), search.offsets, "search");
        }
      }
      // The next round meets other ranks too: each of the first, a little disturbed.
      for (std::size_t i = 0; i < orders_.size(); ++i) {
        std::vector<Index> order = orders_[i];
        for (std::size_t swaps = order.size() / 16 + 1; swaps > 0; --swaps)
          std::swap(order[random_() % order.size()], order[random_() % order.size()]);
        if (ranks.size() < 2 * orders_.size())
          ranks.push_back(rank_of(order));
        else
          ranks[orders_.size() + i] = rank_of(order);
      }
    }
  }

  bool done() const { return found.height <= goal_ || Clock::now() >= until_; }

  OfflinePlacement found;

 private:
  // A search visits every block at each step.
  static constexpr std::size_t kLargestSearch = 2000;

  static std::vector<Index> rank_of(const std::vector<Index>& order) {
    std::vector<Index> rank(order.size());
    for (Index i = 0; i < order.size(); ++i) rank[order[i]] = i;
    return rank;
  }

  Bytes height_of(const std::vector<Bytes>& offsets) const {
    Bytes height = 0;
    for (Index block = 0; block < problem_.size(); ++block)
      height = std::max(height, offsets[block] + problem_.blocks[block].size);
    return height;
  }

  bool keep(Bytes height, const std::vector<Bytes>& offsets, const char* method) {
    if (height >= found.height) return false;
    found.height = height;
    found.offsets = offsets;
    found.method = method;
    return true;
  }

  const Problem& problem_;
  const Clock::time_point until_;
  std::mt19937_64 random_;
  FirstFit fit_;
  Bytes goal_ = 0;
  std::vector<std::vector<Index>> orders_;
  std::vector<Index> best_order_;
};

}  // namespace

OfflinePlacement place_offline(const std::vector<Lifetime>& lifetimes, const PlacementEffort& effort) {
  if (lifetimes.empty()) return {};
  const Problem problem(lifetimes);
  Best best(problem, effort);
  best.first_fit();
  best.reorder(effort.time / 8);
  best.search();
  best.reorder(effort.time);
  OfflinePlacement found = best.found;
  found.offsets.clear();
  for (const Index block : problem.block_of) found.offsets.push_back(best.found.offsets[block]);
  return found;
}

}  // namespace poolalloc
