#include "core/residency.h"

#include <algorithm>
#include <iterator>

#include "core/check.h"

namespace poolalloc {

Residency::Residency(Driver& driver, DeviceIndex device, PageSupply& supply, Address base, PageIndex split,
                     PageIndex pages, const Options& options, PageJournal* journal)
    : PageTable(split, pages, journal),
      driver_(driver),
      device_(device),
      supply_(supply),
      base_(base),
      frame_(pages),
      frames_(1),
      growth_(options.growth == "fast"       ? Growth::fast
              : options.growth == "balanced" ? Growth::balanced
                                             : Growth::tight),
      max_mappings_(static_cast<std::uint64_t>(options.max_mappings)) {}

std::uint32_t Residency::headroom() const {
  if ((growth_ == Growth::tight && !own_) || source_ == Source::none) return 0;
  if (growth_ == Growth::fast || own_) return static_cast<std::uint32_t>(supply_.room());
  const auto most = static_cast<std::int64_t>(static_cast<double>(resident_.peak) * kBalanced);
  const std::int64_t room = most - held_.current;
  return room > 0 ? static_cast<std::uint32_t>(static_cast<Bytes>(room) / kPageBytes) : 0;
}

// --- taking and giving -------------------------------------------------------------------------------------------

void Residency::set_live(PageIndex first, PageIndex last, bool live) {
  if (live)
    make_live(first, last);
  else
    make_idle(first, last);
  tell_journal();
}

// Makes every ready page of the range live, so that its frame is not taken for another, and every other page empty.
Status Residency::clear(PageIndex first, PageIndex last, std::vector<PageIndex>* empty) {
  for (PageIndex page = first; page <= last; ++page) {
    if (ready(page)) make_live(page);
    if (blocked(page)) {  // also by a page of the range that was ready through the same frame
      const Status status = driver_.unmap(device_, address_of(page), kPageBytes);
      if (status != Status::ok) return status;
      remove_alias(page);
    }
    if (state_[page] == 0) empty->push_back(page);
  }
  return Status::ok;
}

// All or nothing, but that pages may have lost mappings that no work could come through any more.
Status Residency::provide(PageIndex first, PageIndex last) {
  if (source_ == Source::back && want_back(first, last)) return Status::out_of_memory;
  const bool first_was = resident(first), last_was = resident(last);
  std::vector<PageIndex> empty;
  Status status = clear(first, last, &empty);
  if (status == Status::ok) {
    limit_mappings(empty.size());
    status = map_frames(empty);
  }
  if (status == Status::ok) {
    for (const PageIndex page : empty) limit_aliases(page);
  } else {
    for (PageIndex page = first; page <= last; ++page)
      if (resident(page) && !(page == first && first_was) && !(page == last && last_was)) make_idle(page);
  }
  tell_journal();
  return status;
}

// Gives every one of these pages a frame, then grants access run by run. All or nothing.
Status Residency::map_frames(const std::vector<PageIndex>& empty) {
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
      add_alias(empty[mapped], own ? frame_[victims[mapped]] : frame_of(handle));
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
  return status;
}

// As many new frames as `growth` allows; idle pages whose frames will do, made live so that each frame is found once;
// then new frames again.
Status Residency::take_frames(std::size_t count, std::vector<PageIndex>* victims,
                              std::vector<PhysicalHandle>* handles) {
  const std::uint32_t allowed = headroom();
  const std::size_t first = own_ && allowed < count ? 0 : std::min<std::size_t>(count, allowed);
  if (first != 0 && supply_.take(first, handles) == Status::ok) count -= first;
  while (victims->size() < count) {
    const PageIndex victim = oldest_idle();
    if (victim == kNoPage) break;
    make_live(victim);
    victims->push_back(victim);
  }
  if (victims->size() == count) return Status::ok;
  missing_ = static_cast<std::uint32_t>(count - victims->size());
  if (source_ == Source::none) return Status::out_of_memory;
  return source_ == Source::any ? supply_.take(missing_, handles) : supply_.take_spare(&missing_, handles);
}

// Unmaps a page that is not resident and not the only one of its frame, if that is here. If the driver refuses, it
// stays.
void Residency::drop_mapping(PageIndex page) {
  if (driver_.unmap(device_, address_of(page), kPageBytes) == Status::ok) remove_alias(page);
}

// The frame of a page that has just been mapped may have one page too many: the one unused for longest goes.
void Residency::limit_aliases(PageIndex page) {
  const Frame& frame = frames_[frame_[page]];
  if (frame.aliases <= kMaxAliases) return;
  PageIndex oldest = kNoPage;
  rings_.visit_others(page, [&](PageIndex alias) {
    if (!replaceable(alias)) return;
    if (oldest == kNoPage || idle_since_[alias] < idle_since_[oldest]) oldest = alias;
  });
  if (oldest != kNoPage) drop_mapping(oldest);
}

// Before so many more mappings are made. A few more go than must, so that the next look through all pages is not due at
// once.
void Residency::limit_mappings(std::size_t wanted) {
  constexpr std::size_t kMore = 256;
  const std::uint64_t made = supply_.mappings() + wanted;
  if (made <= max_mappings_ || !may_unmap_) return;
  std::vector<Victim> unused;
  for (const Range& part : touched_)
    for (PageIndex page = part.first; page < part.end; ++page)
      if ((state_[page] & (kAliased | kAway)) != 0 && (state_[page] & kResident) == 0 && replaceable(page))
        unused.push_back({idle_since_[page], page});
  const std::size_t going = std::min<std::size_t>(unused.size(), made - max_mappings_ + kMore);
  std::nth_element(unused.begin(), unused.begin() + static_cast<std::ptrdiff_t>(going), unused.end(),
                   [](const Victim& a, const Victim& b) { return a.since < b.since; });
  for (std::size_t i = 0; i < going; ++i)
    if ((state_[unused[i].page] & (kAliased | kAway)) != 0) drop_mapping(unused[i].page);  // not the last of its frame
}

// The mapping goes when the caller says that it may: not now, since a capture may be going on.
void Residency::undo_map(PageIndex page, bool from_supply) {
  const FrameIndex frame = frame_[page];
  const PhysicalHandle handle = frames_[frame].handle;
  make_idle(page);
  remove_alias(page);
  const bool frame_goes = from_supply && frames_[frame].aliases == 0;  // one that came back from a loan stays
  mark_detached(page, handle, frame_goes, frame_goes);
  if (frame_goes) {
    drop_frame(frame);
    ++leaving_;
  }
  left_behind_.push_back({page, handle});
}

// Of the aliases of their frames, pages first .. last get one state and count, the others get another.
void Residency::set_aliases(PageIndex first, PageIndex last, std::uint8_t own, std::uint8_t others) {
  if (journal_kept()) [[unlikely]]
    count_at(first, last);
  std::uint8_t* const states = state_.data();
  own |= kCounted;
  others |= kAliased;
  rings_.visit_rings(
      first, last, [=](PageIndex page, bool alone) { states[page] = alone ? own : own | kAliased; },
      [=](PageIndex alias) { states[alias] = others; });
}

// Tells the journal, before states say so.
void Residency::count_at(PageIndex first, PageIndex last) {
  for (PageIndex page = first; page <= last; ++page)
    rings_.visit_others(page, [&](PageIndex alias) {
      if (counts(alias)) count_moves(alias, page);
    });
}

// Since when the frame of a ready page has been idle: the last of its pages was in use then.
Residency::Tick Residency::last_use(PageIndex page) const {
  Tick last = idle_since_[page];
  rings_.visit_others(page, [&](PageIndex alias) { last = std::max(last, idle_since_[alias]); });
  return last;
}

// A ready page whose frame has been idle about longest, or kNoPage. Looks through all pages only when the victims of
// the last look are used up, so that a placement of many pages costs one look.
PageIndex Residency::oldest_idle() {
  const auto still_idle = [this](const Victim& victim) {
    return ready(victim.page) && last_use(victim.page) == victim.since;
  };
  for (int look = 0; look < 2; ++look) {
    while (!victims_.empty()) {
      const Victim victim = victims_.back();
      victims_.pop_back();
      if (still_idle(victim)) return victim.page;
    }
    if (look == 1 || idle_frames() == 0) return kNoPage;
    for (const Range& part : touched_) {
      for (PageIndex page = part.first; page < part.end; ++page) {
        if (page % 8 == 0 && page + 8 <= part.end) {
          std::uint64_t eight;
          std::memcpy(&eight, state_.data() + page, 8);
          if ((eight / kUsable & eight / kCounted & ~eight & kEach) == 0) {  // none of the eight is idle and counted
            page += 7;
            continue;
          }
        }
        if (ready(page) && counts(page)) victims_.push_back({last_use(page), page});
      }
    }
    const auto newer = [](const Victim& a, const Victim& b) {
      return a.since != b.since ? a.since > b.since : a.page > b.page;
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

// Of a physical page that comes from the supply: a new one, or one that comes back.
Residency::FrameIndex Residency::frame_of(PhysicalHandle handle) {
  FrameIndex index;
  if (const auto known = frames_by_handle_.find(handle); known != frames_by_handle_.end()) {
    come_back(known->second);
    return known->second;
  }
  if (unused_frames_.empty()) {
    index = static_cast<FrameIndex>(frames_.size());
    frames_.emplace_back();
  } else {
    index = unused_frames_.back();
    unused_frames_.pop_back();
  }
  frames_[index] = Frame{handle, kNoPage, 0, false};
  frames_by_handle_[handle] = index;
  held_.add(kPageBytes);
  return index;
}

void Residency::drop_frame(FrameIndex index) {
  frames_by_handle_.erase(frames_[index].handle);
  frames_[index] = Frame{};
  unused_frames_.push_back(index);
}

// Its state is for make_live.
void Residency::add_alias(PageIndex page, FrameIndex index) {
  count_mappings(1);
  ++maps_made_;
  frame_[page] = index;
  Frame& frame = frames_[index];
  if (frame.aliases++ == 0) {
    rings_.start(page);
    state_[page] = kCounted;
    count_moves(kNoPage, page);
  } else {
    rings_.join(page, frame.page);
    has_aliases_ = true;
  }
  frame.page = page;
}

void Residency::remove_alias(PageIndex page) {
  Frame& frame = frames_[frame_[page]];
  const PageIndex other = rings_.next(page);
  rings_.leave(page);
  if (other == page) {
    frame.page = kNoPage;
  } else {
    if (frame.page == page) frame.page = other;
    if (counts(page)) {
      state_[other] |= kCounted;
      count_moves(page, other);
    }
    if (rings_.alone(other)) state_[other] &= static_cast<std::uint8_t>(~kAliased);
  }
  --frame.aliases;
  if (frame.away && frame.aliases == 0) drop_frame(frame_[page]);
  frame_[page] = kNoFrame;
  state_[page] = 0;
  count_mappings(-1);
}

// --- loans -------------------------------------------------------------------------------------------------------

// Notes the frames on loan that pages of the range would need back. False if there are none.
bool Residency::want_back(PageIndex first, PageIndex last) {
  for (PageIndex page = first; page <= last; ++page)
    if ((state_[page] & kAway) != 0 && !rings_.repeats(page, first)) wanted_.push_back(frames_[frame_[page]].handle);
  return !wanted_.empty();
}

void Residency::lend_frame(FrameIndex index) {
  Frame& frame = frames_[index];
  frame.away = true;
  for_each_alias(frame.page, [&](PageIndex page) {
    if (counts(page)) frame.page = page;
    state_[page] = (state_[page] & kAliased) | kBlocked | kAway;
  });
  held_.subtract(kPageBytes);
  count_moves(frame.page, kNoPage);
  tell_journal();
  supply_.give(frame.handle);
}

// Nothing has used it since it was given to the supply, or what has is done.
void Residency::come_back(FrameIndex index) {
  Frame& frame = frames_[index];
  frame.away = false;
  for_each_alias(frame.page, [&](PageIndex page) { state_[page] = (state_[page] & kAliased) | kUsable; });
  state_[frame.page] |= kCounted;
  held_.add(kPageBytes);
  count_moves(kNoPage, frame.page);
}

std::uint32_t Residency::lend(Tick tick, std::uint32_t at_most) {
  std::uint32_t frames = 0;
  for (PageIndex page; frames < at_most && (page = idle_since(tick)) != kNoPage; ++frames) lend_frame(frame_[page]);
  return frames;
}

std::uint32_t Residency::lend_these(const std::vector<PhysicalHandle>& handles, bool* running) {
  std::uint32_t frames = 0;
  for (const PhysicalHandle handle : handles) {
    const auto known = frames_by_handle_.find(handle);
    if (known == frames_by_handle_.end()) continue;
    const PageIndex page = frames_[known->second].page;
    if (!ready(page)) continue;  // live, or away
    if (last_use(page) <= completed_) {
      lend_frame(known->second);
      ++frames;
    } else {
      *running = true;
    }
  }
  return frames;
}

void Residency::take_back(const std::vector<PhysicalHandle>& handles) {
  std::vector<PhysicalHandle> here;
  std::copy_if(handles.begin(), handles.end(), std::back_inserter(here),
               [this](PhysicalHandle handle) { return away(handle); });
  for (const PhysicalHandle handle : supply_.take_these(std::move(here))) come_back(frames_by_handle_.at(handle));
  tell_journal();
}

void Residency::detach_lent(const std::vector<PhysicalHandle>& handles, Detached* detached) {
  for (const PhysicalHandle handle : handles) {
    if (!away(handle)) continue;
    const FrameIndex frame = frames_by_handle_.at(handle);
    for (std::uint32_t left = frames_[frame].aliases; left > 0; --left) {
      const PageIndex page = frames_[frame].page;
      remove_alias(page);
      mark_detached(page, handle, false, false);
      detached->push_back({page, handle});
    }
  }
  if (parting_.empty()) return;
  // Some were on their way out before the loan, and that has completed all that could use them.
  std::vector<PhysicalHandle> sorted = handles;
  std::sort(sorted.begin(), sorted.end());
  const auto stays = [&](const Leaving& each) {
    return !std::binary_search(sorted.begin(), sorted.end(), each.handle);
  };
  for (Detached* list : {&postponed_, &left_behind_}) {
    const auto first = std::stable_partition(list->begin(), list->end(), stays);
    detached->insert(detached->end(), first, list->end());
    list->erase(first, list->end());
  }
}

// --- leaving -----------------------------------------------------------------------------------------------------

// The driver still has the mapping.
void Residency::mark_detached(PageIndex page, PhysicalHandle handle, bool frame_goes, bool counted) {
  Parting& parting = parting_[handle];
  ++parting.pages;
  parting.frame_goes |= frame_goes;
  if (frame_[page] == kNoFrame) count_mappings(1);
  frame_[page] = kDetached;
  state_[page] = kBlocked | (counted ? kCounted : 0);
}

void Residency::detach_frame(PageIndex victim, Detached* detached) {
  const FrameIndex frame = frame_[victim];
  const PhysicalHandle handle = frames_[frame].handle;
  for_each_alias(victim, [&](PageIndex page) {
    mark_detached(page, handle, true, counts(page));
    detached->push_back({page, handle});
  });
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

void Residency::detach_idle_since(Tick tick, std::uint32_t at_most, Detached* detached) {
  PageIndex victim;
  for (std::uint32_t frames = 0; frames < at_most && (victim = idle_since(tick)) != kNoPage; ++frames)
    detach_frame(victim, detached);
}

// The page that oldest_idle finds, if nothing has used it since the tick; else it is found again.
PageIndex Residency::idle_since(Tick tick) {
  const PageIndex page = oldest_idle();
  if (page == kNoPage) return kNoPage;
  const Tick since = last_use(page);
  if (since <= tick) return page;
  victims_.push_back({since, page});
  return kNoPage;
}

void Residency::detach_left_behind(Detached* detached) {
  detached->insert(detached->end(), left_behind_.begin(), left_behind_.end());
  left_behind_.clear();
}

void Residency::detach_blocked(Detached* detached) {
  for (const Range& part : touched_) {
    for (PageIndex page = part.first; page < part.end; ++page) {
      if ((state_[page] & kBlocked) == 0 || frame_[page] == kDetached) continue;
      const PhysicalHandle handle = frames_[frame_[page]].handle;
      remove_alias(page);
      mark_detached(page, handle, false, false);
      detached->push_back({page, handle});
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
    if (!leaving.unmapped) {
      left_behind_.push_back(leaving);
      continue;
    }
    const bool counted = (state_[leaving.page] & kCounted) != 0;
    frame_[leaving.page] = kNoFrame;
    state_[leaving.page] = 0;
    count_mappings(-1);
    const auto parting = parting_.find(leaving.handle);
    --parting->second.pages;
    if (counted) {
      const PageIndex next = parting->second.pages != 0 ? another_detached(leaving, detached) : kNoPage;
      count_moves(leaving.page, next);
      if (next != kNoPage) state_[next] |= kCounted;
    }
    if (parting->second.pages != 0) continue;
    if (parting->second.frame_goes) {
      supply_.give(leaving.handle);
      held_.subtract(kPageBytes);
      --leaving_;
      ++frames;
    }
    parting_.erase(parting);
  }
  tell_journal();
  return frames;
}

// One more page of the same frame that is still to be unmapped.
PageIndex Residency::another_detached(const Leaving& leaving, const Detached& detached) const {
  for (const Detached* list : {&detached, &left_behind_, &postponed_})
    for (const Leaving& other : *list)
      if (other.handle == leaving.handle && other.page != leaving.page && frame_[other.page] == kDetached)
        return other.page;
  return kNoPage;
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

Status Residency::allow_access_to_mapped() {
  const auto mapped = [this](PageIndex page) { return frame_[page] != kNoFrame && frame_[page] != kDetached; };
  for (const Range& part : touched_)
    for (PageIndex first = part.first, end; first < part.end; first = end + 1) {
      for (end = first; end < part.end && mapped(end);) ++end;
      if (end == first) continue;
      const Status status = driver_.allow_access(device_, address_of(first), (end - first) * kPageBytes);
      if (status != Status::ok) return status;
    }
  return Status::ok;
}

bool Residency::pieces(PageIndex first, PageIndex last, std::vector<Piece>* pieces) const {
  for (PageIndex page = first; page <= last; ++page) pieces->push_back({frames_[frame_[page]].handle, page, 1});
  return true;
}

void Residency::return_all() {
  for (const Range& part : touched_)
    for (PageIndex page = part.first; page < part.end; ++page)
      if (counts(page)) count_moves(page, kNoPage);
  for (const Range& part : touched_)
    for (PageIndex page = part.first; page < part.end; ++page)
      if (state_[page] != 0) driver_.unmap(device_, address_of(page), kPageBytes);
  for (const Frame& frame : frames_)
    if (frame.page != kNoPage && !frame.away) supply_.give(frame.handle);
  for (const auto& [handle, parting] : parting_)
    if (parting.frame_goes) supply_.give(handle);
  tell_journal();
  supply_.count_mappings(-static_cast<std::int64_t>(mappings_));
}

Bytes Residency::metadata_bytes() const {
  constexpr Bytes kNode = sizeof(decltype(frames_by_handle_)::value_type) + 2 * sizeof(void*);
  return PageTable::metadata_bytes() + tabled_pages() * sizeof(FrameIndex) + frames_.capacity() * sizeof(Frame) +
         unused_frames_.capacity() * sizeof(FrameIndex) + victims_.capacity() * sizeof(Victim) +
         frames_by_handle_.size() * kNode + sizeof(*this);
}

void Residency::shed() {
  shed_tables();
  std::sort(unused_frames_.begin(), unused_frames_.end());
  for (; !unused_frames_.empty() && unused_frames_.back() == frames_.size() - 1; unused_frames_.pop_back())
    frames_.pop_back();
  std::reverse(unused_frames_.begin(), unused_frames_.end());  // low ones first from now on
  frames_.shrink_to_fit();
  unused_frames_.shrink_to_fit();
  std::vector<Victim>().swap(victims_);
}

void Residency::discard(PageIndex first, PageIndex end) {
  PageTable::discard(first, end);
  frame_.discard(first, end);
}

void Residency::validate(const std::vector<std::uint32_t>& blocks_of) const {
  PageTable::validate(blocks_of);
  std::uint32_t detached = 0, leaving = 0;
  std::vector<std::uint32_t> aliases_of(frames_.size()), live_of(frames_.size());
  const auto check_page = [&](PageIndex page) {
    const std::uint8_t state = state_[page];
    POOLALLOC_ENSURE(((state & (kUsable | kBlocked)) != 0) == (frame_[page] != kNoFrame),
                     "a page is usable or blocked if it has a frame");
    if (frame_[page] == kDetached) {
      POOLALLOC_ENSURE((state & ~kCounted) == kBlocked, "a detached page is blocked");
      leaving += (state & kCounted) != 0;
      ++detached;
    } else if (frame_[page] != kNoFrame) {
      ++aliases_of[frame_[page]];
      if ((state & kResident) != 0) {
        POOLALLOC_ENSURE(counts(page), "a frame counts where it is live");
        ++live_of[frame_[page]];
      }
    }
  };
  for (const Range& part : touched_)
    for (PageIndex page = part.first; page < part.end; ++page) check_page(page);
  std::uint32_t held = 0, aliases = 0;
  for (FrameIndex index = 1; index < frames_.size(); ++index) {
    if (frames_[index].page == kNoPage) continue;
    const auto known = frames_by_handle_.find(frames_[index].handle);
    POOLALLOC_ENSURE(known != frames_by_handle_.end() && known->second == index, "a handle leads to its frame");
    const bool away = frames_[index].away;
    held += !away;
    POOLALLOC_ENSURE(!away || live_of[index] == 0, "a frame on loan is live at no page");
    POOLALLOC_ENSURE(live_of[index] <= 1, "a frame is live at one page only");
    std::uint32_t chain = 0, counted = 0, ends = 0;
    for_each_alias(frames_[index].page, [&](PageIndex page) {
      POOLALLOC_ENSURE(frame_[page] == index, "an alias belongs to its frame");
      POOLALLOC_ENSURE(((state_[page] & kAliased) != 0) == (aliases_of[index] > 1), "aliases are marked");
      POOLALLOC_ENSURE(((state_[page] & kAway) != 0) == away, "pages of a frame on loan are marked");
      POOLALLOC_ENSURE(
          ((state_[page] & kBlocked) != 0) == (away || (live_of[index] == 1 && (state_[page] & kResident) == 0)),
          "an alias of a frame that is live or away is blocked");
      ++chain;
      counted += counts(page);
      ends += rings_.next(page) >= page;
    });
    POOLALLOC_ENSURE(ends == 1, "aliases lead downwards and round once");
    POOLALLOC_ENSURE(counted == !away, "a frame that is here counts at one page");
    POOLALLOC_ENSURE(chain == aliases_of[index], "every page of a frame is in its chain");
    POOLALLOC_ENSURE(chain == frames_[index].aliases, "the pages of a frame are counted");
    aliases += chain;
  }
  POOLALLOC_ENSURE(held_.current == static_cast<std::int64_t>((held + leaving_) * kPageBytes),
                   "frames held = frames mapped + detached frames");
  POOLALLOC_ENSURE(leaving == leaving_, "every frame on its way out counts at one page");
  POOLALLOC_ENSURE(mappings_ == aliases + detached, "mappings = aliases + detached pages");
}

}  // namespace poolalloc
