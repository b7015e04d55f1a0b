// Memory that goes back to the device while its addresses, and what lives there, stay.
#include "core/backing/residency.h"

namespace poolalloc {

std::vector<Residency::Alias> Residency::aliases() const {
  std::vector<Alias> all;
  for (SpanIndex index = 1; index < spans_.size(); ++index) {
    const Span& span = spans_[index];
    if (span.handle == 0) continue;
    each_mapping(span, [&](const Mapping& mapping) {
      all.push_back({address_of(mapping.start), span.pages, index, span.handle});
    });
  }
  return all;
}

// Handles stay in the tables as names, though they name nothing now.
void Residency::fall_asleep() {
  asleep_ = true;
  supply_.count_mappings(-static_cast<std::int64_t>(mappings_));
  for (const Range& part : touched_)
    for (PageIndex page = part.first; page < part.end; ++page)
      if (counts(page)) count_moves(page, kNoPage);
  tell_journal();
}

void Residency::forget_idle() {
  for (const SpanIndex index : idle_spans(~Tick{0})) {
    const Span span = spans_[index];
    while (spans_[index].mapping != kNoMapping) {
      const MappingIndex mapping = spans_[index].mapping;
      const PageIndex start = mappings_list_[mapping].start;
      for (PageIndex page = start; page < start + span.pages; ++page) state_[page] &= ~kCounted;
      supply_.count_mappings(1);  // it was taken out when all fell asleep
      remove_mapping(mapping);
    }
    held_.subtract(span.pages * kPageBytes);
    drop_span(index);
  }
}

void Residency::wake_up(const std::vector<Alias>& aliases) {
  spans_by_handle_.clear();
  for (const Alias& alias : aliases) {
    spans_[alias.span].handle = alias.handle;
    spans_by_handle_[alias.handle] = alias.span;
  }
  asleep_ = false;
  supply_.count_mappings(static_cast<std::int64_t>(mappings_));
  for (const Range& part : touched_)
    for (PageIndex page = part.first; page < part.end; ++page)
      if (counts(page)) count_moves(kNoPage, page);
  tell_journal();
}

}  // namespace poolalloc
