//! What hardware offers whose cached translations carry a tag: PCIDs on x86, ASIDs on arm64, PIDs on power.
//!
//! Such a machine keeps the translations of several address spaces at once, and a root can be loaded without dropping
//! them. The price is a protocol: a translation that is kept while its address space is away must not be used when the
//! page tables have changed meanwhile. The rules that have one are in `lazytlb-shootdown`. A kernel whose hardware has no
//! tags, or that does not use them, implements nothing of this file.

use crate::mm::MmCore;
use crate::platform::{Platform, Root};

/// The tag that cached translations carry: what was loaded beside the root when they were made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tag(pub usize);

impl Tag {
    /// The tag that `init_mm` is loaded with. It maps no user address, so nothing of a user is ever cached under it.
    pub const KERNEL: Tag = Tag(0);
}

/// Claim: cached translations carry a tag, and only those with the loaded tag are used.
///
/// # Safety
/// User memory is protected by what these calls promise:
///
/// 1. What is cached under a tag is used only while that tag is loaded.
/// 2. [`load_root_tagged`](Self::load_root_tagged) with `keep` false, and [`flush_tag_local`](Self::flush_tag_local),
///    leave nothing cached under the tag on this CPU: neither translations nor partial walks.
/// 3. [`Platform::flush_tlb_local`] does so for all tags.
pub unsafe trait TaggedTlb: Platform {
    /// How many tags there are besides [`Tag::KERNEL`]: `Tag(1)` to `Tag(nr_tags())` can be used. Never another number.
    fn nr_tags(self) -> usize;

    /// Loads a root and its tag together. With `keep`, what is cached under the tag stays in use; else it is dropped.
    ///
    /// Context: interrupts off. Ordering: walks that begin with the load come after all earlier loads of this CPU.
    ///
    /// # Safety
    /// As for [`Platform::load_root`]; and with `keep`, nothing that is cached under the tag is older than the page tables
    /// of `root` may be.
    unsafe fn load_root_tagged(self, root: Root, tag: Tag, keep: bool);

    /// Drops what this CPU has cached under a tag. Context: pinned.
    fn flush_tag_local(self, tag: Tag);
}

/// Claim: the hardware has an invalidation that reaches what all CPUs have cached under a tag (arm64's TLBI, AMD's INVLPGB,
/// power's TLBIE).
///
/// # Safety
/// When [`flush_tag_broadcast`](Self::flush_tag_broadcast) returns, no CPU uses anything that was cached under the tag
/// before the call, and the caller's earlier stores come before whatever is walked afterwards.
pub unsafe trait BroadcastTags: TaggedTlb {
    /// Drops what any CPU has cached under a tag, and waits until that is done.
    ///
    /// Ordering: after all earlier stores to the page tables. Interrupts nobody. Context: any.
    fn flush_tag_broadcast(self, tag: Tag);
}

/// Claim: the hardware has an invalidation that reaches all CPUs and is waited for by another instruction (AMD's INVLPGB
/// and TLBSYNC).
///
/// # Safety
/// User memory is protected by what these calls promise:
///
/// 1. When [`tlbsync`](Self::tlbsync) returns, no CPU that is online uses anything, translation or partial walk, that was
///    cached under a tag before the last [`invlpgb_tag`](Self::invlpgb_tag) of it by *this* CPU, or under any tag but
///    [`Tag::KERNEL`] before the last [`invlpgb_all`](Self::invlpgb_all) by it; and walks that were under way then have
///    ended.
/// 2. What is walked after that finds the stores that came before a full barrier before the invalidation.
pub unsafe trait Invlpgb: TaggedTlb {
    /// Begins to drop what any CPU has cached under a tag, and does not wait.
    ///
    /// Interrupts nobody. Ordering: none; the caller has had a full barrier since it wrote the page tables. Context: pinned
    /// until [`tlbsync`](Self::tlbsync).
    fn invlpgb_tag(self, tag: Tag);

    /// Begins to drop what any CPU has cached of any user, and does not wait.
    ///
    /// Ordering and context: as for [`invlpgb_tag`](Self::invlpgb_tag).
    fn invlpgb_all(self);

    /// Waits until all that this CPU has begun to drop is dropped everywhere.
    ///
    /// Ordering: before all that the caller does afterwards. Context: pinned since the first of what is waited for: it waits
    /// for nothing that another CPU has begun.
    fn tlbsync(self);
}

/// Claim: the kernel gives each mm a tag of its own for its life (power's PID).
///
/// # Safety
/// Until [`Platform::free_mm`] of an mm no other mm has its tag, and none is [`Tag::KERNEL`] but that of `init_mm`.
pub unsafe trait OwnTag: TaggedTlb {
    /// The tag of an mm. Context: any.
    fn tag_of(self, mm: &MmCore<Self>) -> Tag;
}
