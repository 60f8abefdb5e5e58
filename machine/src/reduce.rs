//! The partial-order reduction: steps that no one else can notice are no choice points.
//!
//! A step commutes with all that others can do before they notice it, so exploring it at once loses nothing: an ample
//! set of one independent transition (Clarke, Grumberg, Peled, "Model Checking", chapter 10). Which words a context
//! shares is not declared but *inferred*. The [`Summary`] keeps, over the whole search, which contexts read and wrote
//! each word; a context is a CPU's tasks, its tasks while one is preempted there, its interrupt handlers, its handlers of
//! non-maskable interrupts, or an agent. A step on a word that no other
//! context conflicts with is *fused* with the one before it. When some execution shows a conflict on a word for which a
//! step was fused already, the search must start again with what it has learned. Mostly that comes early, because first
//! executions touch nearly everything; when it comes late, what else there is to learn is close by, so the search first goes
//! on for a while as it was.
//!
//! # Why the last search, the one that ends without a restart, is complete
//!
//! Take a state, a fused step `t` of context `c` on word `w`, and any execution of the full system from there that does
//! not begin with `t`. Suppose it contains an access to `w` by another context that conflicts, and take the first. All
//! steps before it are independent of `t`, so `t` can be moved to the front, and the same conflicting access happens
//! after `t`: the reduced search, which explores from there, meets it (by induction on the length), would have noted
//! it, and would have started again. So no such access exists: `t` is independent of everything others can do first,
//! which is what an ample set must be. Three more conditions:
//!
//! * *Invisible.* Verdicts come from accesses to objects and from the model's own checks, which are part of steps. An
//!   object's free counts as a write to all of its words, so an access to an object that another context may free is
//!   never fused. What a check looks at counts as read by the step that it is part of
//!   ([`Machine::inspect`](crate::Machine::inspect)), so that a step that changes it is not fused, and neither is one that
//!   is part of such a check.
//! * *Nobody is ignored.* A cycle of fused steps alone would starve the others. A checkpoint that a loop comes back to
//!   is a choice point, and so is every wait; a loop without either exceeds the step limit, which is a verdict.
//! * *Interrupts.* A handler is a context of its own, so a task-level step on a word that the CPU's own handlers touch
//!   is a choice point while interrupts are on. With interrupts off the CPU's contexts cannot alternate and do not
//!   conflict, but for non-maskable ones. Disabling interrupts conflicts with every interrupt that is ever sent to the
//!   CPU, and so does disabling preemption where tasks can be preempted. What runs on a CPU while one of its tasks is
//!   preempted is a context of its own, because it comes between that task's steps.
//!
//! Where tasks share CPUs as they like ([`Config::ticks`](crate::Config::ticks)) a CPU's contexts do not say enough: two
//! tasks of one CPU take turns at any step at which one can be preempted. So the summary keeps which tasks touched a word
//! as well. Where the task can be preempted no other task may conflict with its step; where it cannot, those of its own
//! CPU do not count, as before. Disabling preemption and interrupts are choice points then, and freed objects hold again
//! what they held at first, and are allocated again in an order that does not tell when they were freed: else no search
//! would come back to a state.
//!
//! *Movers.* A step that others' steps commute with *behind* it, whatever they are, is one with the step that follows it: who
//! goes between the two could as well have gone before both (Lipton, "Reduction", CACM 1975: a right mover). A checkpoint
//! is one, which does nothing; so is the end of a wait, once there was a change; so is disabling interrupts, because to send
//! one does the same to a CPU that has disabled them, and so is the timer's interrupt, which nobody sends. Others' interrupts
//! are none: one that is sent again behind it is another one.
//!
//! Stopping the machine waits for the other CPUs' flags, which are no words: where it is used, preemption and interrupt
//! flags must not change behind its back. It is a choice point itself, and what it waits for can only come true by a
//! step, fused or not, that some schedule orders before it and some after.
//!
//! Under TSO a store that enters its CPU's own buffer is noticed by no one until it is drained. It is fused unless an
//! interrupt could come before it, which would find the buffer without it, or the object could be freed; its drain is the
//! step that counts, and a
//! drain to a word that only this CPU touches is done at once. Room in the buffer changes nothing of that: a store that
//! finds room commutes with the drains of its own CPU, which happen at the other end.
//!
//! Under `weak` steps act on views as well. A place's view is its own, but for three things. All full fences share one
//! view: that counts as a word that each of them reads and writes. An interrupt brings its sender's view: a fence after
//! which later stores carry more or less by it is fused only where no interrupt can come. Stopping the machine is a full
//! fence of everybody, and it is a choice point; a step that was fused before it touches what nobody else does, or is a
//! fence, which does the same before as after. Which store a load reads is a choice inside its step. Where the load is
//! fused nobody else writes the word, and there is only one to read.
//!
//! An execution in which too much was fused is an execution all the same: the errors in it are real. So a random search uses
//! the same knowledge as far as it has it, and never starts again.
//!
//! Tests compare the set of outcomes with that of a search without any reduction, for small programs and random ones.

use core::ops::{BitOr, BitOrAssign};

use crate::machine::Machine;
use crate::state::{Context, Next, State};
use crate::symmetry::Names;

/// Who does a step, or all who have done one: contexts, and where tasks share CPUs as they like the tasks, a bit each.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Who {
    pub(crate) contexts: u64,
    /// None in an interrupt handler, and where contexts say it all.
    pub(crate) tasks: u32,
}

impl Who {
    /// Whether all of the others are among them.
    #[inline]
    fn includes(self, others: Who) -> bool {
        others.contexts & !self.contexts == 0 && others.tasks & !self.tasks == 0
    }
}

impl BitOr for Who {
    type Output = Who;

    #[inline]
    fn bitor(self, other: Who) -> Who {
        Who { contexts: self.contexts | other.contexts, tasks: self.tasks | other.tasks }
    }
}

impl BitOrAssign for Who {
    #[inline]
    fn bitor_assign(&mut self, other: Who) {
        *self = *self | other;
    }
}

/// Whose steps cannot come before the next one of the running place.
#[derive(Clone, Copy, Debug)]
struct Mine {
    contexts: u64,
    /// The running task.
    task: u32,
    /// The timer may take the CPU from it right now.
    preemptible: bool,
}

/// Handlers of all places.
const HANDLERS: u64 = {
    let (mut handlers, mut place) = (0, 0);
    while place < Machine::MAX_PLACES {
        handlers |= (Context::IRQ | Context::NMI) << (Context::KINDS * place);
        place += 1;
    }
    handlers
};

/// What is known of one word.
#[derive(Clone, Copy, Debug, Default)]
struct Word {
    readers: Who,
    writers: Who,
    /// Contexts.
    freers: u64,
    /// A step was fused because there was no conflict.
    relied: bool,
    /// A step on it is part of a check that looks at what others write: it is never fused.
    checks_others: bool,
}

impl Word {
    /// Whose steps conflict with one that writes the word or reads it.
    #[inline]
    fn against(&self, writes: bool) -> Who {
        if writes { self.writers | self.readers } else { self.writers }
    }

    /// Whether nobody whose step could come before one of mine, which writes the word or reads it, conflicts with it.
    #[inline]
    fn is_quiet(&self, writes: bool, mine: Mine) -> bool {
        let Who { contexts, tasks } = self.against(writes);
        let task_is_alone = tasks & !mine.task == 0 && contexts & HANDLERS == 0;
        let nobody_comes = (!mine.preemptible && contexts & !mine.contexts == 0) || (mine.task != 0 && task_is_alone);
        nobody_comes && !self.checks_others
    }

    /// Whether somebody else than `who` conflicts with a step of theirs that writes the word or reads it.
    #[inline]
    fn conflicts(&self, writes: bool, who: Who) -> bool {
        let Who { contexts, tasks } = self.against(writes);
        contexts & !who.contexts != 0 || (who.tasks != 0 && tasks & !who.tasks != 0)
    }

    /// Who writes it, or reads it.
    #[inline]
    fn who(&mut self, writes: bool) -> &mut Who {
        if writes { &mut self.writers } else { &mut self.readers }
    }
}

/// What executions have shown.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The last is no word: it stands for what full fences share under `weak`.
    words: Vec<Word>,
    /// CPUs that are sent interrupts.
    kicked: u32,
    /// CPUs that are sent non-maskable interrupts.
    kicked_by_nmis: u32,
}

impl Known {
    fn new(words: usize) -> Known {
        Known { words: vec![Word::default(); words + 1], ..Known::default() }
    }

    /// Adds what is known elsewhere, which then knows nothing any more.
    fn take(&mut self, other: &mut Known) {
        for (word, other) in self.words.iter_mut().zip(&mut other.words) {
            let other = core::mem::take(other);
            word.readers |= other.readers;
            word.writers |= other.writers;
            word.freers |= other.freers;
            word.checks_others |= other.checks_others;
        }
        self.kicked |= core::mem::take(&mut other.kicked);
        self.kicked_by_nmis |= core::mem::take(&mut other.kicked_by_nmis);
    }
}

/// Who touches what, over a whole search.
#[derive(Clone, Debug, Default)]
pub(crate) struct Summary {
    /// What decisions are made by.
    known: Known,
    /// What came too late for decisions that were made. It counts when the search starts again: until then it goes on the
    /// way it has, so that its path through choices stays what it was.
    late: Known,
    /// CPUs whose disabling of interrupts was fused.
    relied_on_silence: u32,
    /// CPUs of which something was fused because no non-maskable interrupt is sent to them.
    relied_on_no_nmis: u32,
    /// Whether steps are fused at all.
    pub(crate) active: bool,
    /// Something was learned that an earlier decision was wrong about.
    wrong: bool,
    /// Whether the search starts again then. A random one does not: it has only been less fine than it could.
    pub(crate) restarts: bool,
    /// Whether tasks share CPUs as they like, so that it matters which one did a step.
    pub(crate) tells_tasks: bool,
    /// What is alike: what one does all may do.
    names: Names,
}

impl Summary {
    pub(crate) fn new(words: usize, active: bool, restarts: bool, tells_tasks: bool, names: Names) -> Summary {
        let [known, late] = [Known::new(words), Known::new(words)];
        Summary { known, late, active, restarts, tells_tasks, names, ..Summary::default() }
    }

    /// Whether anybody has read the word.
    pub(crate) fn is_read(&self, word: usize) -> bool {
        self.known.words[word].readers.contexts != 0
    }

    /// Whether the search must start again.
    #[inline]
    pub(crate) fn must_start_again(&self) -> bool {
        self.wrong & self.restarts
    }

    /// Keeps what is known and forgets what was relied on, for the next attempt.
    pub(crate) fn start_again(&mut self) {
        self.wrong = false;
        self.relied_on_silence = 0;
        self.relied_on_no_nmis = 0;
        self.known.take(&mut self.late);
        for word in &mut self.known.words {
            word.relied = false;
        }
    }

    #[inline]
    pub(crate) fn read(&mut self, word: usize, who: Who) {
        if self.active && !self.known.words[word].readers.includes(who) {
            self.learn(word, who, false);
        }
    }

    #[inline]
    pub(crate) fn write(&mut self, word: usize, who: Who) {
        if self.active && !self.known.words[word].writers.includes(who) {
            self.learn(word, who, true);
        }
    }

    /// Notes what is new, and what is like it.
    #[cold]
    fn learn(&mut self, word: usize, who: Who, writes: bool) {
        if self.late.words[word].who(writes).includes(who) {
            return;
        }
        for (like, tasks) in self.names.like_accesses(word, who.tasks) {
            let (word, who) = (&self.known.words[like], Who { tasks, ..who });
            let is_late = word.relied && word.conflicts(writes, who);
            *self.place_for(is_late).words[like].who(writes) |= who;
        }
    }

    /// Where something is noted: decisions may have been wrong about it, or not.
    fn place_for(&mut self, is_late: bool) -> &mut Known {
        self.wrong |= is_late;
        if is_late && self.restarts { &mut self.late } else { &mut self.known }
    }

    /// An object came or went: whoever looks at one of its words can tell.
    pub(crate) fn free(&mut self, words: core::ops::Range<usize>, who: Who) {
        if self.active {
            for index in words {
                self.write(index, who);
                let freers = self.known.words[index].freers | self.late.words[index].freers;
                if freers & who.contexts == 0 {
                    for like in self.names.siblings(index) {
                        let word = &self.known.words[like];
                        let is_late = word.relied && word.against(true).contexts & !who.contexts != 0;
                        self.place_for(is_late).words[like].freers |= who.contexts;
                    }
                }
            }
        }
    }

    /// A full fence is read and written by each other one.
    pub(crate) fn full_fence(&mut self, who: Who) {
        if self.active {
            self.write(self.known.words.len() - 1, who);
        }
    }

    /// Something was given up that an execution needs.
    pub(crate) fn was_wrong(&mut self) {
        self.wrong |= self.active;
    }

    pub(crate) fn kick(&mut self, place: usize) {
        if self.active {
            self.place_for(self.relied_on_silence & 1 << place != 0).kicked |= 1 << place;
        }
    }

    pub(crate) fn kick_by_nmi(&mut self, place: usize) {
        if self.active {
            self.place_for(self.relied_on_no_nmis & 1 << place != 0).kicked_by_nmis |= 1 << place;
        }
    }

    /// All contexts of a place.
    fn own(place: usize) -> u64 {
        (Context::TASK | Context::PREEMPTING | Context::IRQ | Context::NMI) << (Context::KINDS * place)
    }

    /// The contexts of the running place that can come in between its steps no more than the running one itself.
    fn mine(state: &State) -> Mine {
        let me = state.running;
        let place = &state.places[me];
        let contexts = match (place.in_nmi, place.irqs_on) {
            (true, _) => Self::own(me),
            (false, false) => Self::own(me) & !(Context::NMI << (Context::KINDS * me)),
            (false, true) => state.context_bit(),
        };
        let preemptible = state.summary.tells_tasks && place.irqs_on && place.preempt_count == 0;
        Mine { contexts, task: state.who().tasks, preemptible }
    }

    /// Whether a drain of this CPU to this word can be done at once.
    #[inline]
    pub(crate) fn drains_at_once(&mut self, word: usize, place: usize) -> bool {
        let word = &mut self.known.words[word];
        let quiet = word.against(true).contexts & !Self::own(place) == 0;
        word.relied |= quiet;
        quiet
    }
}

impl State {
    /// Whether the next step of the running place can be done without a choice.
    #[inline]
    pub(crate) fn fuses(&mut self, buffers: bool) -> bool {
        if !self.summary.active {
            return false;
        }
        self.fused = None;
        if self.is_moved() {
            return true;
        }
        let fuses = self.fuses_by_what_is_known(buffers);
        if fuses {
            self.fused = self.places[self.running].next.word();
        }
        fuses
    }

    /// The step under way is part of a check that looks at a word. If the step was fused, nobody has gone before it who writes
    /// that word: steps like it must not be, if somebody does.
    pub(crate) fn inspects(&mut self, word: usize) {
        let who = self.who();
        self.summary.read(word, who);
        let Some(step) = self.fused else { return };
        let mine = Summary::mine(self);
        if !self.is_quiet(word, false, mine) {
            let summary = &mut self.summary;
            let siblings = summary.names.siblings(step);
            siblings.into_iter().for_each(|word| summary.place_for(true).words[word].checks_others = true);
        }
    }

    fn fuses_by_what_is_known(&mut self, buffers: bool) -> bool {
        let me = self.running;
        let place = &self.places[me];
        let mine = Summary::mine(self);
        match place.next {
            Next::Load { word, .. } => self.is_quiet(word, false, mine),
            Next::Store { word, local } if buffers && !local && !place.agent => {
                let has_room = !self.buffer_is_full(me);
                let word = &mut self.summary.known.words[word];
                let nobody_frees = word.freers & !mine.contexts == 0 && !word.checks_others;
                let quiet = has_room && nobody_frees && (!mine.preemptible || word.is_quiet(true, mine));
                word.relied |= quiet;
                // Taking an interrupt drains the buffer: it makes a difference which of the two is first.
                quiet && self.is_silent() && self.has_no_nmis()
            }
            Next::Store { word, .. } | Next::Rmw { word } => {
                let empty = place.buffer.is_empty() || matches!(place.next, Next::Store { .. });
                empty && self.is_quiet(word, true, mine)
            }
            Next::Fence => place.buffer.is_empty(),
            Next::FullRmw { word } => self.is_quiet(word, true, mine) && self.fence_fuses(true, mine),
            Next::Order { full } => self.fence_fuses(full, mine),
            Next::IrqOn => true,
            Next::IrqOff | Next::PreemptOff => self.is_silent(),
            _ => false,
        }
    }

    /// Whether the step before the next one of the running place could as well be done right before it, so that whoever
    /// goes in between could have gone before both.
    fn is_moved(&mut self) -> bool {
        let place = &mut self.places[self.running];
        let moved = core::mem::take(&mut place.after_mover);
        let needs_others = matches!(place.next, Next::Wait | Next::Stop | Next::Idle);
        let goes_at_once = moved && !needs_others && place.buffer.is_empty();
        if goes_at_once {
            self.has_stepped();
        }
        goes_at_once
    }

    /// The running place does its step now, before which others could go. Is it one that commutes with whatever they do
    /// behind it?
    pub(crate) fn has_stepped(&mut self) {
        self.fused = None;
        let place = &mut self.places[self.running];
        place.after_mover = matches!(place.next, Next::Checkpoint | Next::IrqOff | Next::Wait);
    }

    /// Whether nobody can notice when the next step, which writes a word or reads it, is done.
    #[inline]
    fn is_quiet(&mut self, word: usize, writes: bool, mine: Mine) -> bool {
        let word = &mut self.summary.known.words[word];
        let quiet = word.is_quiet(writes, mine);
        word.relied |= quiet;
        quiet
    }

    /// Whether no interrupt can come in before the next step.
    fn is_silent(&mut self) -> bool {
        // With interrupts off already there is nothing to come in before.
        let me = self.running;
        let (irqs_on, silent) = (self.places[me].irqs_on, self.summary.known.kicked & 1 << me == 0);
        self.summary.relied_on_silence |= u32::from(irqs_on && silent) << me;
        !irqs_on || silent
    }

    /// Whether no non-maskable interrupt can come in before the next step.
    fn has_no_nmis(&mut self) -> bool {
        let me = self.running;
        let none = self.summary.known.kicked_by_nmis & 1 << me == 0;
        self.summary.relied_on_no_nmis |= u32::from(none) << me;
        none
    }

    /// Whether a fence under `weak` can be done at once: no interrupt, which brings a view, and no other full fence could
    /// come before it.
    fn fence_fuses(&mut self, full: bool, mine: Mine) -> bool {
        let last = self.summary.known.words.len() - 1;
        (!full || self.is_quiet(last, true, mine)) && self.is_silent()
    }
}
