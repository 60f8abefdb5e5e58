//! State of each level: an opt-in for architectures that need it.
//!
//! The merged generation has one state for the whole task, so what an inner section tells the architecture is lost, and what the
//! outer one told is lost at a pause, which resumes by a plain *enter*. Both were asked for and are not in Linux: per-level state by
//! Hildenbrand and Gordeev on v2 (September 2025), as a value that enable returns and disable takes; a resume that remembers by
//! Gordeev on v4 (November 2025).
//!
//! Here the caller's stack keeps it. The task's state stays as it is, and plain calls mix with these.

use lazytlb_core::memory::LocalWord;

use crate::arch::LazyMmuArch;
use crate::state::{Begun, LazyMmuState};

/// An architecture whose mode can be left and come back to as it was.
///
/// Context of both: as for [`LazyMmuArch`]'s callbacks, while the mode is entered, or where it is about to be.
pub trait ArchLevels: LazyMmuArch {
    /// What the mode was entered with: on s390 the entries that the hint named.
    type Level;

    /// What the mode is in. Nothing changes.
    fn arch_save_lazy_mmu_mode(&self) -> Self::Level;

    /// Enters the mode as it was when `level` was saved.
    ///
    /// # Safety
    /// What `level` remembers is still there.
    unsafe fn arch_restore_lazy_mmu_mode(&self, level: Self::Level);
}

/// What a section of [`LazyMmuState::lazy_mmu_mode_enable_level`] has to put back when it ends.
#[must_use = "the section lasts until this is given to lazy_mmu_mode_disable_level"]
#[derive(Debug)]
pub enum Level<L> {
    /// It began where the mode is off whatever is called: in an interrupt, or while paused.
    Ignored,
    /// It began outside of any other.
    Outermost,
    /// It began inside of another, for which the mode was in this.
    Nested(L),
}

/// What [`LazyMmuState::lazy_mmu_mode_pause_level`] has left.
#[must_use = "the pause lasts until this is given to lazy_mmu_mode_resume_level"]
#[derive(Debug)]
pub struct PausedLevel<L>(Option<L>);

impl<W: LocalWord<u8>> LazyMmuState<W> {
    /// As [`lazy_mmu_mode_enable_with_ptes`](Self::lazy_mmu_mode_enable_with_ptes), and the hint counts in an inner section too:
    /// what was deferred for the outer one takes effect, and the mode is entered anew. Context: any.
    pub fn lazy_mmu_mode_enable_level<A: ArchLevels + ?Sized>(&self, arch: &A, ptes: A::Ptes) -> Level<A::Level> {
        match self.enable(arch, |arch: &A| arch.arch_enter_lazy_mmu_mode_with_ptes(ptes)) {
            Begun::Ignored => Level::Ignored,
            Begun::Outermost => Level::Outermost,
            Begun::Nested => {
                let outer = arch.arch_save_lazy_mmu_mode();
                arch.arch_leave_lazy_mmu_mode();
                arch.arch_enter_lazy_mmu_mode_with_ptes(ptes);
                Level::Nested(outer)
            }
        }
    }

    /// Ends such a section: all that was changed in it, and before it, is in force, and the outer one has its hint again.
    ///
    /// One that began where sections are ignored ends without effect wherever it ends. Context: any.
    pub fn lazy_mmu_mode_disable_level<A: ArchLevels + ?Sized>(&self, arch: &A, level: Level<A::Level>) {
        match level {
            Level::Ignored => {}
            Level::Outermost => self.lazy_mmu_mode_disable(arch),
            Level::Nested(outer) => self.disable(arch, |arch: &A| {
                arch.arch_leave_lazy_mmu_mode();
                // SAFETY: as who has made the hint has promised.
                unsafe { arch.arch_restore_lazy_mmu_mode(outer) };
            }),
        }
    }

    /// As [`lazy_mmu_mode_pause`](Self::lazy_mmu_mode_pause), and remembers what the mode was entered with. Context: any.
    pub fn lazy_mmu_mode_pause_level<A: ArchLevels + ?Sized>(&self, arch: &A) -> PausedLevel<A::Level> {
        let level = self.is_lazy_mmu_mode_active(arch).then(|| arch.arch_save_lazy_mmu_mode());
        self.lazy_mmu_mode_pause(arch);
        PausedLevel(level)
    }

    /// Ends such a pause: if the mode was on it is on again, as it was. Context: any.
    pub fn lazy_mmu_mode_resume_level<A: ArchLevels + ?Sized>(&self, arch: &A, paused: PausedLevel<A::Level>) {
        if arch.in_interrupt() {
            return;
        }
        self.resume(arch, |arch: &A| match paused.0 {
            // SAFETY: as who has made the hint has promised.
            Some(level) => unsafe { arch.arch_restore_lazy_mmu_mode(level) },
            None => arch.arch_enter_lazy_mmu_mode(),
        });
    }
}
