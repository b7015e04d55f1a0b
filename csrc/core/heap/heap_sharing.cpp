// Blocks of a heap that are named to other processes (sharing.h).
#include <atomic>

#include "core/base/errors.h"
#include "core/heap/heap.h"

namespace poolalloc {

std::optional<SharedBlock> Heap::share(Address address) {
  static std::atomic<std::uint64_t> last_id{0};
  const auto block = this->block(address);
  if (!block) return std::nullopt;
  const Bytes offset = block->address - base_;
  const Guard guard(*this);
  const Found found = find(offset);
  if (found.size == 0) return std::nullopt;
  if (asleep_) throw UsageError("this tensor lies in a region that is asleep; wake it before sharing the tensor");
  if (uses_.pending(offset)) return std::nullopt;
  std::uint64_t& name = names_[offset];
  set_attention();
  if (name == 0) name = ++last_id;
  std::vector<PageTable::Piece> pieces;
  pages_.pieces(static_cast<PageIndex>(offset / kPageBytes),
                static_cast<PageIndex>((offset + found.size - 1) / kPageBytes), &pieces);
  const Bytes first = pieces.front().start * kPageBytes;
  const Bytes end = (Bytes{pieces.back().start} + pieces.back().pages) * kPageBytes;
  return SharedBlock{shared_.device, base_ + first, end - first, name, base_ + offset};
}

bool Heap::shared_pieces(const SharedBlock& block, std::vector<PageTable::Piece>* pieces) const {
  const Guard guard(*this);
  const Bytes offset = block.block - base_;
  const auto name = names_.find(offset);
  if (name == names_.end() || name->second != block.id) return false;
  const Bytes size = find(offset).size;
  if (size == 0 || !pages_.pieces(static_cast<PageIndex>(offset / kPageBytes),
                                  static_cast<PageIndex>((offset + size - 1) / kPageBytes), pieces))
    return false;
  return block.pages == address_of(pieces->front().start * kPageBytes);
}

}  // namespace poolalloc
