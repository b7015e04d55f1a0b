#include "core/residency.h"

#include <algorithm>

#include "core/check.h"

namespace poolalloc {

Residency::Residency(Driver& driver, DeviceIndex device, PageSupply& supply, Address base, PageIndex split,
                     PageIndex pages)
    : PageTable(split, pages),
      driver_(driver),
      device_(device),
      supply_(supply),
      base_(base),
      frame_(pages),
      next_alias_(pages),
      frames_(1) {}

// --- judging -----------------------------------------------------------------------------------------------------

void Residency::judge(PageIndex first, PageIndex last, std::uint8_t any, Cost* cost) const {
  if ((any & kBlocked) != 0) count_blocked(first, last, cost);
  if ((any & kAliased) != 0 && cost->possible) cost->possible = !frames_repeat(first, last);
}

// Blocked pages cost a mapping each, if all of them can be had.
void Residency::count_blocked(PageIndex first, PageIndex last, Cost* cost) const {
  for (PageIndex page = first; page <= last; ++page) {
    if (!blocked(page)) continue;
    if (!replaceable(page)) {
      cost->possible = false;
      return;
    }
    ++cost->maps;
  }
}

// Whether two ready pages of the range map the same frame: they cannot both become resident.
bool Residency::frames_repeat(PageIndex first, PageIndex last) const {
  for (PageIndex page = first; page <= last; ++page) {
    if (state_[page] != (kMapped | kAliased)) continue;
    for (PageIndex alias = frames_[frame_[page]].first_alias; alias != kNoPage; alias = next_alias_[alias])
      if (alias > page && alias <= last) return true;
  }
  return false;
}

// --- taking and giving -------------------------------------------------------------------------------------------

void Residency::set_live(PageIndex first, PageIndex last, bool live) {
  for (PageIndex page = first; page <= last; ++page) {
    if (!live)
      make_idle(page);
    else if ((state_[page] & kResident) == 0)
      make_live(page);
  }
}

// Unmaps the blocked pages of the range, whose mappings nothing uses any more: they become empty.
Status Residency::clear_blocked(PageIndex first, PageIndex last) {
  for (PageIndex page = first; page <= last; ++page) {
    if (!blocked(page)) continue;
    const Status status = driver_.unmap(device_, address_of(page), kPageBytes);
    if (status != Status::ok) return status;
    remove_alias(page);
  }
  return Status::ok;
}

// Gives every empty or blocked page of the range a frame, then grants access run by run. All or nothing, but that
// blocked pages may be left empty.
Status Residency::provide(PageIndex first, PageIndex last) {
  if (const Status status = clear_blocked(first, last); status != Status::ok) return status;
  // Frames that are ready in the range must not be taken for its empty pages.
  std::vector<PageIndex> empty;
  for (PageIndex page = first; page <= last; ++page) {
    if (state_[page] == 0) empty.push_back(page);
    if (ready(page)) make_live(page);
  }
  // All frames before the first mapping: running out of memory is common, and has nothing to unmap.
  std::vector<PageIndex> victims;
  std::vector<PhysicalHandle> handles;
  Status status = take_frames(empty.size(), &victims, &handles);
  std::size_t mapped = 0;
  if (status == Status::ok) {
    for (; mapped < empty.size(); ++mapped) {
      const bool own = mapped < victims.size();
      const PhysicalHandle handle = own ? frames_[frame_[victims[mapped]]].handle : handles[mapped - victims.size()];
      status = driver_.map(device_, address_of(empty[mapped]), kPageBytes, handle);
      if (status != Status::ok) break;
      add_alias(empty[mapped], own ? frame_[victims[mapped]] : new_frame(handle));
      make_live(empty[mapped]);
    }
    for (std::size_t i = 0; i < mapped && status == Status::ok;) {
      std::size_t end = i + 1;
      while (end < mapped && empty[end] == empty[end - 1] + 1) ++end;
      status = driver_.allow_access(device_, address_of(empty[i]), (end - i) * kPageBytes);
      i = end;
    }
  }
  if (status == Status::ok) {
    aliased_ += victims.size();
  } else {
    for (std::size_t i = 0; i < mapped; ++i) undo_map(empty[i], i >= victims.size());
    for (std::size_t i = mapped; i < victims.size(); ++i) make_idle(victims[i]);
    for (std::size_t i = std::max(mapped, victims.size()); i < victims.size() + handles.size(); ++i)
      supply_.give(handles[i - victims.size()]);
  }
  // acquire_pages makes the range resident, or nobody does.
  for (PageIndex page = first; page <= last; ++page)
    if (blocks_[page] == 0 && (state_[page] & kResident) != 0) make_idle(page);
  return status;
}

// Idle pages whose frames will do, made live so that each frame is found once, then new frames from the supply.
Status Residency::take_frames(std::size_t count, std::vector<PageIndex>* victims,
                              std::vector<PhysicalHandle>* handles) {
  while (victims->size() < count) {
    const PageIndex victim = oldest_idle();
    if (victim == kNoPage) break;
    make_live(victim);
    victims->push_back(victim);
  }
  if (victims->size() == count) return Status::ok;
  return may_grow_ ? supply_.take(count - victims->size(), handles) : Status::out_of_memory;
}

// The mapping goes when the caller says that it may: not now, since a capture may be going on.
void Residency::undo_map(PageIndex page, bool from_supply) {
  const FrameIndex frame = frame_[page];
  const PhysicalHandle handle = frames_[frame].handle;
  make_idle(page);
  remove_alias(page);
  mark_detached(page);
  if (from_supply) {
    drop_frame(frame);
    ++leaving_;
  }
  left_behind_.push_back({page, from_supply, handle});
}

// State bits only; counts are the caller's.
void Residency::make_live(PageIndex page) { set_aliases(page, kMapped | kResident, kMapped | kBlocked); }
void Residency::make_idle(PageIndex page) { set_aliases(page, kMapped, kMapped); }

void Residency::set_aliases(PageIndex page, std::uint8_t own, std::uint8_t others) {
  const PageIndex first = frames_[frame_[page]].first_alias;
  if (first == page && next_alias_[page] == kNoPage) {
    state_[page] = own;
    return;
  }
  for (PageIndex alias = first; alias != kNoPage; alias = next_alias_[alias]) {
    state_[alias] = (alias == page ? own : others) | kAliased;
    if (alias != page) idle_since_[alias] = tick_;
  }
}

// A ready page whose frame has been idle about longest, or kNoPage. Looks through all pages only when the victims of
// the last look are used up, so that a placement of many pages costs one look.
PageIndex Residency::oldest_idle() {
  const auto still_idle = [this](const Victim& victim) {
    return ready(victim.page) && idle_since_[victim.page] == victim.idle_since;
  };
  for (int look = 0; look < 2; ++look) {
    while (!victims_.empty()) {
      const Victim victim = victims_.back();
      victims_.pop_back();
      if (still_idle(victim)) return victim.page;
    }
    if (look == 1 || idle_frames() == 0) return kNoPage;
    for (const Span& part : touched_) {
      for (PageIndex page = part.first; page < part.end; ++page) {
        if (page % 8 == 0 && page + 8 <= part.end) {
          std::uint64_t eight;
          std::memcpy(&eight, state_.data() + page, 8);
          if ((eight >> 1 & ~eight & kEach) == 0) {  // none of the eight is mapped and not resident
            page += 7;
            continue;
          }
        }
        if (ready(page)) victims_.push_back({idle_since_[page], page});
      }
    }
    const auto newer = [this](const Victim& a, const Victim& b) {
      const std::uint32_t age_a = tick_ - a.idle_since, age_b = tick_ - b.idle_since;
      return age_a != age_b ? age_a < age_b : a.page > b.page;
    };
    constexpr std::size_t kKeep = 1024;
    if (victims_.size() > kKeep) {
      std::nth_element(victims_.begin(), victims_.end() - kKeep, victims_.end(), newer);
      victims_.erase(victims_.begin(), victims_.end() - kKeep);
    }
    std::sort(victims_.begin(), victims_.end(), newer);
  }
  return kNoPage;
}

Residency::FrameIndex Residency::new_frame(PhysicalHandle handle) {
  FrameIndex index;
  if (unused_frames_.empty()) {
    index = static_cast<FrameIndex>(frames_.size());
    frames_.emplace_back();
  } else {
    index = unused_frames_.back();
    unused_frames_.pop_back();
  }
  frames_[index] = Frame{handle, kNoPage};
  held_.add(kPageBytes);
  return index;
}

void Residency::drop_frame(FrameIndex index) {
  frames_[index] = Frame{};
  unused_frames_.push_back(index);
}

void Residency::add_alias(PageIndex page, FrameIndex frame) {
  ++mappings_;
  ++maps_made_;
  frame_[page] = frame;
  next_alias_[page] = frames_[frame].first_alias;
  frames_[frame].first_alias = page;
}

void Residency::remove_alias(PageIndex page) {
  Frame& frame = frames_[frame_[page]];
  PageIndex* link = &frame.first_alias;
  while (*link != page) link = &next_alias_[*link];
  *link = next_alias_[page];
  if (frame.first_alias != kNoPage && next_alias_[frame.first_alias] == kNoPage)
    state_[frame.first_alias] &= static_cast<std::uint8_t>(~kAliased);
  frame_[page] = kNoFrame;
  state_[page] = 0;
  --mappings_;
}

// --- leaving -----------------------------------------------------------------------------------------------------

// The driver still has the mapping.
void Residency::mark_detached(PageIndex page) {
  if (frame_[page] == kNoFrame) ++mappings_;
  frame_[page] = kDetached;
  state_[page] = kMapped | kBlocked;
}

void Residency::detach_frame(PageIndex victim, Detached* detached) {
  const FrameIndex frame = frame_[victim];
  for (PageIndex page = frames_[frame].first_alias; page != kNoPage; page = next_alias_[page]) {
    mark_detached(page);
    detached->push_back({page, next_alias_[page] == kNoPage, frames_[frame].handle});
  }
  drop_frame(frame);
  ++leaving_;
}

void Residency::detach_idle(std::uint32_t at_most, Detached* detached) {
  detached->insert(detached->end(), postponed_.begin(), postponed_.end());
  postponed_.clear();
  for (std::uint32_t frames = 0; frames < at_most; ++frames) {
    const PageIndex victim = oldest_idle();
    if (victim == kNoPage) break;
    detach_frame(victim, detached);
  }
}

// Every page that maps an idle frame has been idle since the same tick or before.
void Residency::detach_idle_since(std::uint32_t tick, std::uint32_t at_most, Detached* detached) {
  for (std::uint32_t frames = 0; frames < at_most; ++frames) {
    const PageIndex victim = oldest_idle();
    if (victim == kNoPage) break;
    if (!not_after(idle_since_[victim], tick)) {
      victims_.push_back({idle_since_[victim], victim});
      break;
    }
    detach_frame(victim, detached);
  }
}

void Residency::detach_left_behind(Detached* detached) {
  detached->insert(detached->end(), left_behind_.begin(), left_behind_.end());
  left_behind_.clear();
}

void Residency::detach_blocked(Detached* detached) {
  for (const Span& part : touched_) {
    for (PageIndex page = part.first; page < part.end; ++page) {
      if ((state_[page] & kBlocked) == 0 || frame_[page] == kDetached) continue;
      detached->push_back({page, false, frames_[frame_[page]].handle});
      remove_alias(page);
      mark_detached(page);
    }
  }
}

void Residency::unmap_detached(Detached* detached) const {
  for (Leaving& leaving : *detached)
    leaving.unmapped = driver_.unmap(device_, address_of(leaving.page), kPageBytes) == Status::ok;
}

std::uint32_t Residency::return_detached(const Detached& detached) {
  std::uint32_t frames = 0;
  for (const Leaving& leaving : detached) {
    if (leaving.unmapped) {
      frame_[leaving.page] = kNoFrame;
      state_[leaving.page] = 0;
      --mappings_;
    } else {
      left_behind_.push_back({leaving.page, false, leaving.handle});
    }
    if (!leaving.last) continue;
    // A frame goes when no page maps it any more.
    const auto behind = std::find_if(left_behind_.begin(), left_behind_.end(),
                                     [&](const Leaving& other) { return other.handle == leaving.handle; });
    if (behind != left_behind_.end()) {
      behind->last = true;
    } else {
      supply_.give(leaving.handle);
      held_.subtract(kPageBytes);
      --leaving_;
      ++frames;
    }
  }
  return frames;
}

void Residency::postpone(const Detached& detached) {
  postponed_.insert(postponed_.end(), detached.begin(), detached.end());
}

void Residency::return_left_behind() {
  Detached again;
  again.swap(left_behind_);
  unmap_detached(&again);
  return_detached(again);
}

Status Residency::allow_access_to_mapped(DeviceIndex peer) {
  const auto mapped = [this](PageIndex page) { return frame_[page] != kNoFrame && frame_[page] != kDetached; };
  for (const Span& part : touched_)
    for (PageIndex first = part.first, end; first < part.end; first = end + 1) {
      for (end = first; end < part.end && mapped(end);) ++end;
      if (end == first) continue;
      const Status status = driver_.allow_access(peer, address_of(first), (end - first) * kPageBytes);
      if (status != Status::ok) return status;
    }
  return Status::ok;
}

void Residency::return_all() {
  for (const Span& part : touched_)
    for (PageIndex page = part.first; page < part.end; ++page)
      if (state_[page] != 0) driver_.unmap(device_, address_of(page), kPageBytes);
  for (const Frame& frame : frames_)
    if (frame.first_alias != kNoPage) supply_.give(frame.handle);
  for (const Detached& detached : {postponed_, left_behind_})
    for (const Leaving& leaving : detached)
      if (leaving.last) supply_.give(leaving.handle);
}

Bytes Residency::metadata_bytes() const {
  const Bytes touched = (touched_[0].end - touched_[0].first) + (touched_[1].end - touched_[1].first);
  return PageTable::metadata_bytes() + touched * (sizeof(FrameIndex) + sizeof(PageIndex)) +
         frames_.capacity() * sizeof(Frame) + unused_frames_.capacity() * sizeof(FrameIndex) +
         victims_.capacity() * sizeof(Victim) + sizeof(*this);
}

void Residency::validate(const std::vector<std::uint32_t>& blocks_of) const {
  PageTable::validate(blocks_of);
  std::uint32_t detached = 0;
  std::vector<std::uint32_t> aliases_of(frames_.size()), live_of(frames_.size());
  const auto check_page = [&](PageIndex page) {
    const std::uint8_t state = state_[page];
    POOLALLOC_ENSURE(((state & kMapped) != 0) == (frame_[page] != kNoFrame), "a page is mapped if it has a frame");
    if (frame_[page] == kDetached) {
      POOLALLOC_ENSURE(state == (kMapped | kBlocked), "a detached page is blocked");
      ++detached;
    } else if (frame_[page] != kNoFrame) {
      ++aliases_of[frame_[page]];
      if ((state & kResident) != 0) ++live_of[frame_[page]];
    }
  };
  for (const Span& part : touched_)
    for (PageIndex page = part.first; page < part.end; ++page) check_page(page);
  std::uint32_t held = 0, aliases = 0;
  for (FrameIndex index = 1; index < frames_.size(); ++index) {
    if (frames_[index].first_alias == kNoPage) continue;
    ++held;
    POOLALLOC_ENSURE(live_of[index] <= 1, "a frame is live at one page only");
    std::uint32_t chain = 0;
    for (PageIndex page = frames_[index].first_alias; page != kNoPage; page = next_alias_[page]) {
      POOLALLOC_ENSURE(frame_[page] == index, "an alias belongs to its frame");
      POOLALLOC_ENSURE(((state_[page] & kAliased) != 0) == (aliases_of[index] > 1), "aliases are marked");
      POOLALLOC_ENSURE(((state_[page] & kBlocked) != 0) == (live_of[index] == 1 && (state_[page] & kResident) == 0),
                       "an alias of a live frame is blocked");
      ++chain;
    }
    POOLALLOC_ENSURE(chain == aliases_of[index], "every page of a frame is in its chain");
    aliases += chain;
  }
  POOLALLOC_ENSURE(held_.current == static_cast<std::int64_t>((held + leaving_) * kPageBytes),
                   "frames held = frames mapped + detached frames");
  POOLALLOC_ENSURE(mappings_ == aliases + detached, "mappings = aliases + detached pages");
}

}  // namespace poolalloc
