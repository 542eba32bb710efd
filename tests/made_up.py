"""Records as runs would leave them, of runs that never were."""

from experiments.studies import Study

SMALL = Study("Does it pay?", "tutorial", {"with": {}, "without": dict(stn=False)}, epochs=(2,),
              seeds=3)


def record(this=SMALL, arm="with", epochs=2, seed=0, accuracy=0.5, study="small", **more):
    """A record of `arm`; more: keys that differ, "config" with fields that do."""
    config = this.config(arm, epochs, seed).replace(**more.pop("config", {})).to_dict()
    history = [dict(epoch=k + 1, seconds=2.0, precision="fp32", val_accuracy=accuracy - 0.1)
               for k in range(epochs)]
    return dict(
        study=study, arm=arm, seed=seed, config=config, dataset="CIFAR-10", parameters=1234,
        mflop=5.4, finished=True, epochs_done=epochs, precision="fp32", threads=1, history=history,
        machine="2 CPU cores, a chip", test=dict(accuracy=accuracy, images=10), tta={},
        train=dict(accuracy=0.9),
        statistics={key: dict(mean=1.1, std=0.1) for key in ("sampling_scale", "outside", "moved")},
    ) | more


def posed(median=7.0, counts=None, **more):
    """More keys of a record: what a run on rotated pictures leaves."""
    counts = counts or [100, *[0] * 34, 100]
    return dict(pose_recovery=dict(
        median_rotation_error=median, mean_rotation_error=None, within_5=0.5, within_15=0.5,
        within_22_5=None, within_30=0.5, median_rotation_error_mod90=None, within_22_5_mod90=None,
        median_abs_log_scale=0.0, median_shift=0.0, histogram=counts), **more)
