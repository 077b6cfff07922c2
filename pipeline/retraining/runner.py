"""One call of the scheduler: the phases of an attempt in order, from wherever it was left.

    planned -> trained -> registered -> evaluated -> decided -> promoted -> finished

The state is stored after each phase, and each phase may be done again: a call that was killed
anywhere is followed by one that continues, and until the alias `champion` moves, in one write of
the registry, nothing that is in service has changed. Once it is stored that it moved (`promoted`),
it is not moved again: what people do then with it stands. A rejected candidate skips that phase.
The registry is the memory of what was tried: each version carries the fingerprints of its data and
what was decided about it.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace

from pipeline.errors import UserError
from pipeline.registry.locks import CHAMPION_LOCK, RETRAIN_LOCK, locked
from pipeline.registry.registry import (
    CANDIDATE,
    CHAMPION,
    REPLACED_TAG,
    ROLLED_BACK_TAG,
    ModelVersion,
    Registry,
)
from pipeline.retraining.config import RetrainConfig
from pipeline.retraining.data import DataState, changes
from pipeline.retraining.decision import Decision, Scores, decide
from pipeline.retraining.record import PREFIX, DecisionRecord
from pipeline.retraining.state import Attempt, StateFile, now
from pipeline.storage.base import Storage
from pipeline.storage.lease import Lease
from pipeline.tracking.redaction import redact_text

logger = logging.getLogger(__name__)

OUTCOMES = ("unchanged", "tried", "promoted", "rejected", "rolled back")
"""The kinds of a `Result`."""
_UNDONE = "it was promoted, and "
"""How the reason begins where a person took a promotion back."""


@dataclass(frozen=True)
class Trained:
    """What a training left behind."""

    checkpoint: str
    """A path that all nodes share, or s3://."""
    run_id: str
    """MLflow run of the training."""
    metrics: dict[str, float]


@dataclass(frozen=True)
class Work:
    """The long parts of a re-training; see `launch` for the real ones."""

    data: Callable[[], DataState]
    """The shards as they are now."""
    train: Callable[[Attempt], Trained]
    """Trains the attempt's run, or resumes it."""
    evaluate: Callable[[str], Mapping[str, float]]
    """Figures of the checkpoint at a URI on the validation shards."""


@dataclass(frozen=True)
class Result:
    """How a call ended."""

    kind: str
    """One of `OUTCOMES`."""
    text: str
    """For people."""
    version: str = ""
    """The version that it is about."""


class Retraining:
    """Re-trains one registered model, whose state lies in `RUN_STORAGE/retrain/NAME`."""

    def __init__(
        self,
        config: RetrainConfig,
        models: Registry,
        record: DecisionRecord,
        storage: Storage,
        work: Work,
    ) -> None:
        self._config, self._models, self._record = config, models, record
        self._storage, self._work, self._state = storage, work, StateFile(storage)

    def run(self) -> Result:
        """Does what there is to do.

        Raises:
            RetrainLocked: Another call is at it.
            UserError: Data, recipe and champion do not fit each other.
        """
        what = f"the re-training of {self._config.registry.name}"
        with locked(self._storage, RETRAIN_LOCK, self._config.lock, what) as lease:
            attempt = self._going_on()
            if attempt is None:
                planned = self._plan()
                if isinstance(planned, Result):
                    return planned
                attempt = self._keep(planned, lease)
            while attempt.phase != "finished":
                attempt = self._keep(self._next(attempt, lease), lease)
            return self._result(attempt)

    def rollback(self) -> Result:
        """Puts the previous champion back; works while a training holds the other lock.

        Raises:
            RetrainLocked: The champion is just being changed.
            UserError: There is no champion, or no previous one.
        """
        name = self._config.registry.name
        with self._locked_champion() as lease:
            champion = self._models.alias(CHAMPION)
            if champion is None or not champion.tags.get(REPLACED_TAG):
                has = f"version {champion.version} replaced none" if champion else "there is none"
                raise UserError(
                    f"rollback=true: {name} must have a {CHAMPION} that replaced another one, and "
                    f"{has}: set the alias in the MLflow UI"
                )
            lease.check()
            gone = champion.version
            try:
                previous = self._models.roll_back().version
            except UserError as error:  # Also one whose answer got lost, but not its effect.
                raise type(error)(f"{error}; {self.champion_now()}") from None
            reason = f"rolled back from version {gone} to version {previous}"
            self._record_rollback(gone, previous, champion.run_id, reason)
            return Result("rolled back", f"{name}: {reason}", previous)

    def champion_now(self) -> str:
        """Describes the champion, as a clause for a message about a failure."""
        try:
            return _in_service(self._models.aliases().get(CHAMPION, ""))
        except UserError:
            return f"look which version has the alias {CHAMPION} before you roll back (again)"

    def _locked_champion(self) -> AbstractContextManager[Lease]:
        what = f"the champion of {self._config.registry.name}"
        return locked(self._storage, CHAMPION_LOCK, self._config.lock, what)

    def _record_rollback(self, gone: str, previous: str, run_id: str, reason: str) -> None:
        """Writes a rollback down as far as that goes: it is done, and must not be done twice."""
        from mlflow.exceptions import MlflowException

        tags = {"decision": "rolled back", "reasons": reason, "decided_at": now()}
        content = {"kind": "rollback", "from": gone, "to": previous, "at": now()}
        try:
            self._record.write(f"{now()[:23]}-rollback-{gone}", gone, run_id, tags, content)
        except (MlflowException, UserError, OSError) as error:
            logger.warning(
                "%s: the rollback is done: version %s is the champion; only its record failed: %s",
                self._config.registry.name,
                previous,
                redact_text(" ".join(str(error).split())),
            )

    def _going_on(self) -> Attempt | None:
        """The attempt that an earlier call began and did not finish, if it can still be finished.

        A training that is done is worth its evaluation, whatever became of the data meanwhile; one
        that is not cannot continue with other data or another start.
        """
        attempt = self._state.read()
        if attempt is None or attempt.phase == "finished":
            return None
        if attempt.phase != "planned":
            if attempt.candidate and all(
                version.version != attempt.candidate for version in self._models.versions()
            ):
                return self._give_up(attempt, f"version {attempt.candidate} was deleted")
            attempt = self._comparable(attempt)
            logger.info("going on with %s, which is %s", attempt.run_name, attempt.phase)
            return attempt
        data, config = self._work.data(), self._config
        if data.training != attempt.training:
            return self._give_up(attempt, "the training shards changed since")
        if attempt.champion and config.start != attempt.start:
            return self._give_up(attempt, f"start={config.start} is asked for now")
        if attempt.run_name.rpartition("-")[0] != config.run.name:
            return self._give_up(attempt, f"run.name={config.run.name} is asked for now")
        logger.info("going on with the training of %s", attempt.run_name)
        return replace(attempt, validation=data.validation)

    def _give_up(self, attempt: Attempt, reason: str) -> None:
        logger.warning("%s is given up: %s", attempt.run_name, reason)
        content = {"kind": "given up", "reason": reason, "at": now(), "attempt": asdict(attempt)}
        self._record.log(_key(attempt), content)

    def _comparable(self, attempt: Attempt) -> Attempt:
        """Without the figures, and what was decided by them, if they were made otherwise."""
        if attempt.phase not in ("registered", "evaluated", "decided") or not attempt.figures:
            return attempt
        is_same = attempt.compared_by == self._config.comparison.key
        # A call that was killed when it had promoted the candidate leaves it so.
        if is_same or self._models.aliases().get(CHAMPION) == attempt.candidate:
            return attempt
        logger.warning("%s: comparison.* changed since: evaluating anew", attempt.run_name)
        return replace(attempt, phase="registered", figures={}, decision={})

    def _plan(self) -> Attempt | Result:
        """A new attempt, or why there is none."""
        config, name = self._config, self._config.registry.name
        data, champion = self._work.data(), self._models.alias(CHAMPION)
        if not data.validation:
            raise UserError(
                f"data.val_split={config.data.val_split}: has no shards in {config.data.shards}, "
                "and without them no model can be told to be better: convert the split too"
            )
        found = changes(champion.tags, data) if champion else []
        same = [v for v in self._models.versions() if v.tags.get(f"{PREFIX}data") == data.key]
        if not config.force:
            if champion and not found:
                which = f"the shards are those of the champion, version {champion.version}"
                text = f"{name}: nothing to do: {which}; --force trains anyway"
                return Result("unchanged", text, champion.version)
            tried = [v for v in same if v.tags.get(f"{PREFIX}decision")]
            if not champion:  # What was no first champion is none when it is trained again.
                tried = [v for v in tried if v.tags[f"{PREFIX}decision"] == "rejected"]
                tried = [v for v in tried if v.tags.get(f"{PREFIX}compared_with") == "none"]
            if tried:
                return self._tried(tried[0])  # The newest, which comes first.
        start, version = (config.start, champion.version) if champion else ("fresh", "")
        source = self._models.checkpoint(version) if start == "warm" else ""
        words = repr((data.key, version, start, len(same)))
        key = hashlib.sha256(words.encode()).hexdigest()[:16]
        why = tuple(found) or ("it was forced" if champion else "there is no champion yet",)
        attempt = Attempt(
            id=key,
            run_name=f"{config.run.name}-{key[:8]}",
            training=data.training,
            validation=data.validation,
            why=why,
            start=start,
            start_from=source,
            champion=version,
            began=now(),
        )
        logger.info("%s: training %s: %s", name, attempt.run_name, "; ".join(why))
        return attempt

    def _tried(self, version: ModelVersion) -> Result:
        what, when, why = (
            version.tags.get(PREFIX + tag, "?") for tag in ("decision", "decided_at", "reasons")
        )
        text = (
            f"{self._config.registry.name}: nothing to do: this data was already tried, as version "
            f"{version.version}, {what} on {when}: {why}; --force trains anyway"
        )
        return Result("tried", text, version.version)

    def _keep(self, attempt: Attempt, lease: Lease) -> Attempt:
        """Stores what is done; only the holder of the lock may."""
        lease.check()
        self._state.write(attempt)
        return attempt

    def _next(self, attempt: Attempt, lease: Lease) -> Attempt:
        """Does the phase that comes next."""
        if attempt.phase == "planned":
            return replace(attempt, phase="trained", **vars(self._work.train(attempt)))
        if attempt.phase == "trained":
            return self._register(attempt)
        if attempt.phase == "registered":
            return self._evaluate(attempt, lease)
        if attempt.phase == "evaluated":
            return self._decide(attempt)
        if attempt.phase == "decided":
            return self._act(attempt, lease)
        return self._conclude(attempt)

    def _register(self, attempt: Attempt) -> Attempt:
        """Makes the version, or finds the one that a killed call has made."""
        tags = {"attempt": attempt.id, "start": attempt.start, "why": "; ".join(attempt.why)}
        version = self._models.register(
            attempt.checkpoint,
            run_id=attempt.run_id,
            metrics=attempt.metrics,
            tags={PREFIX + tag: value for tag, value in tags.items()} | attempt.training,
        )
        self._models.set_alias(CANDIDATE, version.version)
        # So that a person who changes the champion takes the same lock (`registry_job`).
        self._models.set_state_folder(self._storage.uri)
        return replace(attempt, phase="registered", candidate=version.version)

    def _evaluate(self, attempt: Attempt, lease: Lease) -> Attempt:
        """Scores both models on the same shards; the champion is the one of this moment."""
        champion = self._models.alias(CHAMPION)
        version = champion.version if champion else ""
        if version == attempt.candidate:
            by_hand = Decision(True, ("it was made the champion by hand, without a comparison",))
            return replace(attempt, phase="decided", decision=by_hand.to_dict())
        shards = self._work.data().validation
        if shards != attempt.validation:
            attempt = replace(attempt, validation=shards, figures={})
        attempt = replace(attempt, champion=version, compared_by=self._config.comparison.key)
        places = {attempt.candidate: attempt.checkpoint}
        if champion:
            places = {version: self._models.checkpoint(champion)} | places
        for which, place in places.items():
            if which not in attempt.figures:
                figures = dict(self._work.evaluate(place))
                attempt = replace(attempt, figures=attempt.figures | {which: figures})
                self._keep(attempt, lease)
        if self._work.data().validation != shards:
            raise UserError(
                f"data.shards={self._config.data.shards}: validation shards changed while the "
                "models were evaluated on them: call again when they are complete"
            )
        return replace(attempt, phase="evaluated")

    def _decide(self, attempt: Attempt) -> Attempt:
        limits = {"margin": self._config.margin, "max_drop": self._config.max_drop}
        scores = {which: Scores.from_figures(found) for which, found in attempt.figures.items()}
        decision = decide(scores.get(attempt.champion), scores[attempt.candidate], **limits)
        return replace(attempt, phase="decided", decision=decision.to_dict() | {"limits": limits})

    def _act(self, attempt: Attempt, lease: Lease) -> Attempt:
        """Moves the alias where that was decided; a rejection is written down at once."""
        decision = Decision.from_dict(attempt.decision)
        if ROLLED_BACK_TAG in self._models.get(attempt.candidate).tags:
            # By a person, after a call that was killed when it had promoted the candidate.
            return self._conclude(_undone(attempt, "rolled back"))
        if not decision.promote:
            return self._conclude(attempt)
        if not self._promote(attempt, lease):
            logger.warning("the champion was changed meanwhile: comparing with the new one")
            return replace(attempt, phase="registered", decision={})
        return replace(attempt, phase="promoted")

    def _conclude(self, attempt: Attempt) -> Attempt:
        """Writes the decision down, and what became of a promotion since."""
        if attempt.phase == "promoted":
            aliases = self._models.aliases()
            if aliases.get(CANDIDATE) == attempt.candidate:
                self._models.remove_alias(CANDIDATE)
            version = aliases.get(CHAMPION, "")
            if version != attempt.candidate:
                attempt = _undone(attempt, f"rolled back by hand: {_in_service(version)}")
        decision = Decision.from_dict(attempt.decision)
        data = DataState(attempt.training, attempt.validation)
        self._record.tag_version(attempt.candidate, data.tags | {f"{PREFIX}data": data.key})
        tags = {
            "decision": "promoted" if decision.promote else "rejected",
            "reasons": "; ".join(decision.reasons),
            "decided_at": now(),
            "compared_with": attempt.champion or "none",
            "gain": "none" if decision.gain is None else f"{decision.gain:+.6f}",
        }
        content = {"kind": "decision", "at": now(), "attempt": asdict(attempt)}
        self._record.write(_key(attempt), attempt.candidate, attempt.run_id, tags, content)
        return replace(attempt, phase="finished")

    def _promote(self, attempt: Attempt, lease: Lease) -> bool:
        """Makes the candidate the champion, if the champion is still the one it was compared with.

        Its holder has at least half of `lock.expires_s` after `check` before anybody else may take
        a lock over, and continues to renew it.
        """
        with self._locked_champion() as second:
            version = self._models.aliases().get(CHAMPION, "")
            if version not in (attempt.candidate, attempt.champion):
                return False
            if version != attempt.candidate:
                lease.check()
                second.check()
                self._models.set_alias(CHAMPION, attempt.candidate)
        return True

    def _result(self, attempt: Attempt) -> Result:
        decision, old = Decision.from_dict(attempt.decision), attempt.champion
        reasons = "; ".join(decision.reasons)
        if decision.promote:
            kind = "promoted"
            what = "is the champion now" + (f", in place of version {old}" if old else "")
        else:
            kind, stays = "rejected", old and not reasons.startswith(_UNDONE)
            what = "was rejected" + (f"; version {old} stays the champion" if stays else "")
        text = f"{self._config.registry.name}: version {attempt.candidate} {what}: {reasons}"
        return Result(kind, text, attempt.candidate)


def _in_service(version: str) -> str:
    return f"version {version} is the champion" if version else "there is no champion"


def _undone(attempt: Attempt, how: str) -> Attempt:
    """The attempt whose promotion a person took back."""
    gain = Decision.from_dict(attempt.decision).gain
    return replace(attempt, decision=Decision(False, (_UNDONE + how,), gain).to_dict())


def _key(attempt: Attempt) -> str:
    """Names a decision; sorts by time."""
    return f"{attempt.began[:23]}-{attempt.id}"
