#include "core/residency.h"

#include <sys/mman.h>

#include <new>

#include "core/check.h"

namespace poolalloc {

void Residency::Unmapper::operator()(Page* table) const { munmap(table, bytes); }

Residency::Residency(Driver& driver, DeviceIndex device, PageSupply& supply, Address base, PageIndex pages)
    : driver_(driver), device_(device), supply_(supply), base_(base), page_count_(pages), frames_(1) {
  // The table covers every page of the range, most of which are never used: let the kernel give memory on first touch.
  const std::size_t bytes = std::size_t{pages} * sizeof(Page);
  void* table = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (table == MAP_FAILED) throw std::bad_alloc();
  table_ = std::unique_ptr<Page[], Unmapper>(static_cast<Page*>(table), Unmapper{bytes});
}

Status Residency::acquire_pages(PageIndex first, PageIndex last) {
  if (last >= touched_) touched_ = last + 1;
  // Pages that are ready first, so that their frames are not taken for the empty ones.
  bool any_empty = false;
  for (PageIndex page = first; page <= last; ++page) {
    Page& entry = table_[page];
    if (entry.blocks++ != 0) continue;
    if (entry.frame == kNoFrame)
      any_empty = true;
    else
      make_live(page, entry.frame);
  }
  if (!any_empty) return Status::ok;

  // Give every empty page a frame, then grant access run by run. `from_supply` remembers which frames to give back.
  std::vector<std::pair<PageIndex, FrameIndex>> mapped;  // page, and its frame if it came from the supply
  Status status = Status::ok;
  for (PageIndex page = first; page <= last && status == Status::ok; ++page) {
    if (table_[page].frame != kNoFrame) continue;
    FrameIndex from_supply = kNoFrame;
    status = back(page, &from_supply);
    if (status == Status::ok) mapped.emplace_back(page, from_supply);
  }
  for (std::size_t i = 0; i < mapped.size() && status == Status::ok;) {
    std::size_t end = i + 1;
    while (end < mapped.size() && mapped[end].first == mapped[end - 1].first + 1) ++end;
    status = driver_.allow_access(device_, address_of(mapped[i].first), (end - i) * kPageBytes);
    i = end;
  }
  if (status == Status::ok) return Status::ok;

  // Nobody has used the new mappings yet, so they may go without waiting.
  for (auto [page, from_supply] : mapped) {
    const FrameIndex frame = table_[page].frame;
    make_idle(page);
    driver_.unmap(device_, address_of(page), kPageBytes);
    remove_alias(page);
    if (from_supply != kNoFrame) {
      supply_.give(frames_[frame].handle);
      drop_frame(frame);
    } else {
      --aliased_;
    }
  }
  for (PageIndex page = first; page <= last; ++page) {
    if (--table_[page].blocks == 0 && table_[page].frame != kNoFrame) make_idle(page);
  }
  return status;
}

// Maps a frame at an empty page and makes it live there: the one idle longest, else one from the supply.
Status Residency::back(PageIndex page, FrameIndex* new_frame_out) {
  FrameIndex frame = oldest_;
  if (frame == kNoFrame) {
    if (!may_grow_) return Status::out_of_memory;
    PhysicalHandle handle = 0;
    if (const Status status = supply_.take(&handle); status != Status::ok) return status;
    if (const Status status = driver_.map(device_, address_of(page), kPageBytes, handle); status != Status::ok) {
      supply_.give(handle);
      return status;
    }
    frame = new_frame(handle);
    *new_frame_out = frame;
  } else {
    const Status status = driver_.map(device_, address_of(page), kPageBytes, frames_[frame].handle);
    if (status != Status::ok) return status;
    ++aliased_;
  }
  ++mappings_;
  table_[page].frame = frame;
  table_[page].next_alias = frames_[frame].first_alias;
  frames_[frame].first_alias = page;
  make_live(page, frame);
  return Status::ok;
}

void Residency::make_live(PageIndex page, FrameIndex frame) {
  unlink_idle(frame);
  frames_[frame].live_page = page;
  resident_.add(kPageBytes);
}

void Residency::make_idle(PageIndex page) {
  const FrameIndex index = table_[page].frame;
  Frame& frame = frames_[index];
  frame.live_page = kNoPage;
  frame.older = newest_;
  frame.newer = kNoFrame;
  (newest_ != kNoFrame ? frames_[newest_].newer : oldest_) = index;
  newest_ = index;
  ++idle_count_;
  resident_.subtract(kPageBytes);
}

void Residency::unlink_idle(FrameIndex index) {
  Frame& frame = frames_[index];
  (frame.older != kNoFrame ? frames_[frame.older].newer : oldest_) = frame.newer;
  (frame.newer != kNoFrame ? frames_[frame.newer].older : newest_) = frame.older;
  frame.newer = frame.older = kNoFrame;
  --idle_count_;
}

Residency::FrameIndex Residency::new_frame(PhysicalHandle handle) {
  FrameIndex index;
  if (unused_frames_.empty()) {
    index = static_cast<FrameIndex>(frames_.size());
    frames_.emplace_back();
  } else {
    index = unused_frames_.back();
    unused_frames_.pop_back();
    frames_[index] = Frame{};
  }
  frames_[index].handle = handle;
  // A frame starts idle, as make_live expects.
  Frame& frame = frames_[index];
  frame.older = newest_;
  (newest_ != kNoFrame ? frames_[newest_].newer : oldest_) = index;
  newest_ = index;
  ++idle_count_;
  held_.add(kPageBytes);
  return index;
}

void Residency::drop_frame(FrameIndex index) {
  unlink_idle(index);
  frames_[index] = Frame{};
  unused_frames_.push_back(index);
  held_.subtract(kPageBytes);
}

void Residency::remove_alias(PageIndex page) {
  PageIndex* link = &frames_[table_[page].frame].first_alias;
  while (*link != page) link = &table_[*link].next_alias;
  *link = table_[page].next_alias;
  table_[page].frame = kNoFrame;
  --mappings_;
}

Residency::Detached Residency::detach_idle(std::uint32_t at_most) {
  Detached detached;
  while (oldest_ != kNoFrame && detached.frames.size() < at_most) {
    const FrameIndex frame = oldest_;
    detached.frames.push_back(frames_[frame].handle);
    for (PageIndex page = frames_[frame].first_alias; page != kNoPage; page = table_[page].next_alias) {
      table_[page].frame = kDetached;
      detached.pages.push_back(page);
    }
    drop_frame(frame);
  }
  return detached;
}

Residency::Detached Residency::detach_blocked() {
  Detached detached;
  for (PageIndex page = 0; page < touched_; ++page) {
    const FrameIndex frame = table_[page].frame;
    if (frame == kNoFrame || frame == kDetached || table_[page].blocks != 0) continue;
    if (frames_[frame].live_page == kNoPage) continue;
    remove_alias(page);
    ++mappings_;  // the driver still has it until return_detached
    table_[page].frame = kDetached;
    detached.pages.push_back(page);
  }
  return detached;
}

void Residency::return_detached(const Detached& detached) {
  for (PageIndex page : detached.pages) {
    driver_.unmap(device_, address_of(page), kPageBytes);
    table_[page].frame = kNoFrame;
    --mappings_;
  }
  for (PhysicalHandle handle : detached.frames) supply_.give(handle);
}

void Residency::return_all() {
  for (PageIndex page = 0; page < touched_; ++page)
    if (table_[page].frame != kNoFrame) driver_.unmap(device_, address_of(page), kPageBytes);
  for (FrameIndex frame = 1; frame < frames_.size(); ++frame)
    if (frames_[frame].first_alias != kNoPage) supply_.give(frames_[frame].handle);
}

Bytes Residency::metadata_bytes() const {
  return touched_ * sizeof(Page) + frames_.capacity() * sizeof(Frame) + unused_frames_.capacity() * sizeof(FrameIndex) +
         sizeof(*this);
}

void Residency::validate(const std::vector<std::uint32_t>& blocks_of) const {
  std::uint32_t resident = 0, aliases = 0, detached = 0;
  std::vector<std::uint32_t> aliases_of(frames_.size());
  for (PageIndex page = 0; page < touched_; ++page) {
    const Page& entry = table_[page];
    POOLALLOC_ENSURE(entry.blocks == blocks_of[page], "blocks counted on a page are the blocks that overlap it");
    if (entry.frame == kDetached) {
      POOLALLOC_ENSURE(entry.blocks == 0, "a detached page carries no block");
      ++detached;
      continue;
    }
    if (entry.blocks != 0) {
      POOLALLOC_ENSURE(entry.frame != kNoFrame, "a page under a block has a frame");
      POOLALLOC_ENSURE(frames_[entry.frame].live_page == page, "a frame is live at one page only");
      ++resident;
    }
    if (entry.frame != kNoFrame) ++aliases_of[entry.frame];
  }
  std::uint32_t held = 0;
  for (FrameIndex index = 1; index < frames_.size(); ++index) {
    const Frame& frame = frames_[index];
    if (frame.first_alias == kNoPage) continue;
    ++held;
    std::uint32_t chain = 0;
    for (PageIndex page = frame.first_alias; page != kNoPage; page = table_[page].next_alias) {
      POOLALLOC_ENSURE(table_[page].frame == index, "an alias belongs to its frame");
      ++chain;
    }
    POOLALLOC_ENSURE(chain == aliases_of[index], "every page of a frame is in its chain");
    aliases += chain;
    if (frame.live_page != kNoPage)
      POOLALLOC_ENSURE(table_[frame.live_page].frame == index && table_[frame.live_page].blocks != 0,
                       "a live frame is under a block");
  }
  std::uint32_t idle = 0;
  for (FrameIndex index = oldest_; index != kNoFrame; index = frames_[index].newer) {
    POOLALLOC_ENSURE(frames_[index].live_page == kNoPage, "an idle frame is not live");
    POOLALLOC_ENSURE(frames_[index].newer == kNoFrame || frames_[frames_[index].newer].older == index,
                     "the idle list is doubly linked");
    ++idle;
  }
  POOLALLOC_ENSURE(idle == idle_count_, "idle frames are counted");
  POOLALLOC_ENSURE(held == resident + idle, "frames = resident frames + idle frames");
  POOLALLOC_ENSURE(held_.current == static_cast<std::int64_t>(held * kPageBytes), "held frames are counted");
  POOLALLOC_ENSURE(resident_.current == static_cast<std::int64_t>(resident * kPageBytes),
                   "resident frames are counted");
  POOLALLOC_ENSURE(mappings_ >= aliases && mappings_ <= aliases + detached, "mappings are counted");
}

}  // namespace poolalloc
