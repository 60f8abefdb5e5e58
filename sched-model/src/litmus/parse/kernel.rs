//! The language of [`crate::kernel`]: its statements, its lines of the header, and the condition.

use lazytlb_machine::text::{Line, Word};

use super::{LitmusError, Reader};
use crate::kernel::{KernelInterrupt, KernelStatement, Read};
use crate::program::{InInterrupt, Statement};

/// What the errors say that there is besides.
pub(super) const STATEMENTS: &str = "use-temporary-mm, unuse-temporary-mm, text-poke, save-root, load-root, \
    load-saved-root, store-user, load-user, membarrier, clear-cid, lock, lock-irq, unlock, leave, walk-leaders, \
    must-be-reaped";
/// Likewise, for an interrupt.
pub(super) const IN_INTERRUPT: &str = "look-parked, read-user, read-user-checked or leave";

impl Reader {
    /// A statement, if it is one of these.
    pub(super) fn kernel_statement(
        &self,
        line: &Line<'_>,
        cell: &str,
        words: &[Word<'_>],
    ) -> Result<Option<Statement>, LitmusError> {
        use KernelStatement::*;
        let wrong = |rest: &[Word<'_>], what: &str| Err(line.takes_one(cell, words[0], rest, what));
        let kernel = &self.litmus.program.kernel;
        let statement = match (words[0].text, &words[1..]) {
            ("use-temporary-mm", [mm]) => UseTemporaryMm(self.mm(line, *mm)?),
            ("unuse-temporary-mm", []) => UnuseTemporaryMm,
            ("text-poke", [mm]) => TextPoke(self.mm(line, *mm)?),
            ("save-root", []) => SaveRoot,
            ("load-root", [mm]) => LoadRoot(self.mm(line, *mm)?),
            ("load-saved-root", []) => LoadSavedRoot,
            ("store-user", [word]) => StoreUser(line.named(*word, &kernel.words, "user word")?),
            ("load-user", [word]) => LoadUser(line.named(*word, &kernel.words, "user word")?),
            ("membarrier", [mm]) => Membarrier(self.mm(line, *mm)?),
            ("membarrier", [mm, Word { text: "of-tasks", .. }]) => MembarrierOfTasks(self.mm(line, *mm)?),
            ("clear-cid", [cpu]) => match cpu.text.parse().ok().filter(|&cpu| cpu < self.litmus.program.cpus()) {
                Some(number) if kernel.cid.is_some() => ClearCid(number),
                Some(_) => return Err(line.error(words[0].column, "expected a line `cid MM` in the header")),
                None => return Err(line.error(cpu.column, "expected the number of a CPU")),
            },
            ("lock", [lock]) => Lock(line.named(*lock, &kernel.locks, "spinlock")?),
            ("lock-irq", [lock]) => LockIrq(line.named(*lock, &kernel.locks, "spinlock")?),
            ("unlock", [lock]) => Unlock(line.named(*lock, &kernel.locks, "spinlock")?),
            ("offline", [Word { text: "borrowing", .. }]) => OfflineBorrowing,
            ("offline", [Word { text: "first", .. }]) => OfflineFirst,
            ("offline", [Word { text: "looking-early", .. }]) => OfflineLookingEarly,
            ("leave", []) => Leave,
            ("mmdrop", [mm, Word { text: "twice", .. }]) => MmdropTwice(self.mm(line, *mm)?),
            ("munmap", [mm, Word { text: "frees-first", .. }]) => MunmapFreesFirst(self.mm(line, *mm)?),
            ("walk-leaders", []) => WalkLeaders,
            ("walk-leaders", [Word { text: "stopped", .. }]) => WalkLeadersStopped,
            ("must-be-reaped", [mm]) => MustBeReaped(self.mm(line, *mm)?),
            ("use-temporary-mm" | "text-poke" | "load-root" | "membarrier" | "must-be-reaped", rest) => {
                return wrong(rest, "one mm");
            }
            ("store-user" | "load-user", rest) => return wrong(rest, "one user word"),
            ("lock" | "lock-irq" | "unlock", rest) => return wrong(rest, "one spinlock"),
            ("clear-cid", rest) => return wrong(rest, "the number of a CPU"),
            ("unuse-temporary-mm" | "save-root" | "load-saved-root" | "leave" | "walk-leaders", [extra, ..]) => {
                return Err(line.error(extra.column, format!("not known behind `{}`", words[0].text)));
            }
            _ => return Ok(None),
        };
        Ok(Some(Statement::Kernel(statement)))
    }

    /// What an interrupt does, if it is one of these.
    pub(super) fn kernel_interrupt(words: &[Word<'_>]) -> Option<InInterrupt> {
        let what = match words {
            [Word { text: "look-parked", .. }] => KernelInterrupt::LookIntoParked,
            [Word { text: "read-user", .. }] => KernelInterrupt::ReadUser,
            [Word { text: "read-user-checked", .. }] => KernelInterrupt::ReadUserChecked,
            [Word { text: "leave", .. }] => KernelInterrupt::Leave,
            _ => return None,
        };
        Some(InInterrupt::Kernel(what))
    }

    /// A line of the header, if it is one of these. Says whether it was.
    pub(super) fn kernel_header(
        &mut self,
        line: &Line<'_>,
        key: Word<'_>,
        rest: &[Word<'_>],
    ) -> Result<bool, LitmusError> {
        const MOST: usize = 8;
        match key.text {
            "word" | "spinlock" => {
                let kernel = &mut self.litmus.program.kernel;
                let names = if key.text == "word" { &mut kernel.words } else { &mut kernel.locks };
                for word in rest {
                    if names.iter().any(|name| name == word.text) || names.len() == MOST {
                        let message = format!("`{}` is there already, or there are {MOST}", word.text);
                        return Err(line.error(word.column, message));
                    }
                    names.push(word.text.to_owned());
                }
            }
            "cid" => {
                let [mm] = rest else { return Err(line.error(key.column, "expected one mm after `cid`")) };
                self.litmus.program.kernel.cid = Some(self.mm(line, *mm)?);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// `forbid CPU:WORD=VALUE...`
    pub(super) fn forbid(&mut self, line: &Line<'_>, rest: &[Word<'_>]) -> Result<(), LitmusError> {
        let program = &self.litmus.program;
        let read = |word: &Word<'_>| {
            let (cpu, read) = word.text.split_once(':')?;
            let (name, value) = read.split_once('=')?;
            let cpu = cpu.parse().ok().filter(|&cpu| cpu < program.cpus())?;
            let word = program.kernel.words.iter().position(|word| word == name)?;
            let value = value.parse().ok().filter(|&value| value < 2)?;
            Some(Read { cpu, word, value })
        };
        let wrong = |word: &Word<'_>| line.error(word.column, "expected CPU:WORD=0 or CPU:WORD=1");
        let all = rest.iter().map(|word| read(word).ok_or_else(|| wrong(word)));
        let all = all.collect::<Result<Vec<Read>, LitmusError>>()?;
        if all.is_empty() {
            return Err(line.error(line.end(line.text), "expected CPU:WORD=VALUE"));
        }
        self.litmus.program.kernel.forbidden.push(all);
        Ok(())
    }
}
