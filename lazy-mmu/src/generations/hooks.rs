//! G0 and G1: the architecture's own hooks, and a value on the caller's stack.

use lazytlb_core::memory::LocalWord;

use super::{Generation, check};
use crate::arch::{LazyMmuArch, Warning};
use crate::state::NativeCounter;

/// The hooks alone, as they were from 2006 to Linux 6.19: enter, leave, and no state of the generic layer (G0).
///
/// Each architecture had a flag of its own and its own answer to a second enter: Xen stopped the machine, powerpc and sparc lost
/// the batch at the inner leave. This is arm64's, one flag in the task: a second enter sets it again, the inner leave clears it, and
/// the rest of the outer section is not batched (1ef3095b1405). `STRICT` is the form of May 2025, which warned of that (5fdd05efa1cd).
///
/// What KASAN did for a pause is leave and enter: in a nested section that ends the outer one's mode, and begins it again.
#[derive(Debug)]
pub struct Hooks<W = NativeCounter, const STRICT: bool = false> {
    active: W,
}

impl<W: LocalWord<u8>, const STRICT: bool> Default for Hooks<W, STRICT> {
    fn default() -> Self {
        Hooks { active: W::new(0) }
    }
}

impl<W: LocalWord<u8>, const STRICT: bool> Generation for Hooks<W, STRICT> {
    type Section = ();
    type Pause = ();

    const NAME: &'static str = if STRICT { "hooks-strict" } else { "hooks" };
    const SOURCE: &'static str = if STRICT { "arm64, May 2025" } else { "2006 to Linux 6.19" };

    fn enable<A: LazyMmuArch + ?Sized>(&self, arch: &A) {
        if arch.in_interrupt() {
            return;
        }
        check(arch, !STRICT || self.active.get() == 0, Warning::Nested);
        self.active.set(1);
        arch.arch_enter_lazy_mmu_mode();
    }

    fn disable<A: LazyMmuArch + ?Sized>(&self, arch: &A, (): ()) {
        if arch.in_interrupt() {
            return;
        }
        arch.arch_leave_lazy_mmu_mode();
        self.active.set(0);
    }

    fn pause<A: LazyMmuArch + ?Sized>(&self, arch: &A) {
        self.disable(arch, ());
    }

    fn resume<A: LazyMmuArch + ?Sized>(&self, arch: &A, (): ()) {
        self.enable(arch);
    }

    fn is_on(&self) -> bool {
        self.active.get() != 0
    }

    fn counts(&self) -> (u8, u8) {
        (self.active.get(), 0)
    }
}

/// The caller keeps what enable returns and gives it to disable: v1 and v2 (G1), 8 September 2025
/// (20250908073931.4159362).
///
/// Each section could have had as much state of its own as it liked. It lost to a counter: the values meant something to
/// architectures only and stood in generic headers, every caller needed a variable, and leaving for a moment had to be said by
/// giving the outermost section's value at any depth.
#[derive(Debug)]
pub struct Stack<W = NativeCounter> {
    active: W,
}

/// What enable found (`lazy_mmu_state_t`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Found {
    /// The mode was off (`LAZY_MMU_DEFAULT`). Given to disable at whatever depth, it ends the mode; the thread on v2 wanted to call
    /// that `LAZY_MMU_FLUSH`.
    #[default]
    Default,
    /// It was on (`LAZY_MMU_NESTED`).
    Nested,
}

impl<W: LocalWord<u8>> Default for Stack<W> {
    fn default() -> Self {
        Stack { active: W::new(0) }
    }
}

impl<W: LocalWord<u8>> Generation for Stack<W> {
    type Section = Found;
    type Pause = ();

    const NAME: &'static str = "stack";
    const SOURCE: &'static str = "v2, September 2025";

    fn enable<A: LazyMmuArch + ?Sized>(&self, arch: &A) -> Found {
        if arch.in_interrupt() {
            return Found::Default;
        }
        if self.active.get() != 0 {
            return Found::Nested;
        }
        self.active.set(1);
        arch.arch_enter_lazy_mmu_mode();
        Found::Default
    }

    fn disable<A: LazyMmuArch + ?Sized>(&self, arch: &A, found: Found) {
        if arch.in_interrupt() {
            return;
        }
        match found {
            Found::Nested => arch.arch_flush_lazy_mmu_mode(),
            Found::Default => {
                arch.arch_leave_lazy_mmu_mode();
                self.active.set(0);
            }
        }
    }

    fn pause<A: LazyMmuArch + ?Sized>(&self, arch: &A) {
        self.disable(arch, Found::Default);
    }

    /// Enables again and throws away what that returns.
    fn resume<A: LazyMmuArch + ?Sized>(&self, arch: &A, (): ()) {
        let _ = self.enable(arch);
    }

    fn is_on(&self) -> bool {
        self.active.get() != 0
    }

    fn counts(&self) -> (u8, u8) {
        (self.active.get(), 0)
    }
}
