"""What is wrong with a configuration, a line for each error, in the words of the file."""

import difflib
import re
from collections.abc import Iterator, Mapping
from datetime import date
from itertools import dropwhile
from typing import Any

from pydantic import ValidationError

from triptych.config.datasets import caption_sources
from triptych.config.settings import Settings
from triptych.config.sizes import expanded_names
from triptych.config.texts import is_name

PROJECTOR_KIND = "mlp2x_gelu"  # kind of connector that LLaVA's projector is
SECRET = re.compile(r"(api|access|private)_?key|(^|_)(token|password|secret)$", re.IGNORECASE)


def reference_errors(config: Mapping[str, Any]) -> list[str]:
    """Faults in how stages, schedules, data sets and folds name each other.

    Reads the configuration as written, so that these are reported beside errors of single values.
    """
    written = {str(name): value for name, value in mapping(config.get("datasets")).items()}
    expanded = [
        (name, value)
        for base, value in written.items()
        for name, _ in expanded_names(base, mapping(value).get("sizes"))
    ]
    datasets = dict(expanded)
    stages = {str(name): _with_valid_data(mapping(value)) for name, value in mapping(config.get("stages")).items()}
    # What is no list, no mapping or no name is said elsewhere; here it would lead to errors that are none.
    lists = [schedule for schedule in _list(config.get("schedules")) if all(map(is_name, _list(schedule) or [None]))]
    schedules = [[str(stage) for stage in schedule] for schedule in lists]
    folded = mapping(config.get("folds")).get("dataset")
    folded = folded if is_name(folded) else None
    errors: list[str] = []
    if len(datasets) < len(expanded):
        errors.append("datasets: two have the same name once sizes are added; rename one or remove a duplicate size")
    if folded is not None and str(folded) not in datasets:
        errors.append(f"folds.dataset: {unknown(str(folded), 'datasets', datasets)}")
        folded = None
    elif folded is not None and mapping(datasets[str(folded)]).get("source") in caption_sources():
        errors.append(f"folds.dataset: '{folded}' has captions; folds need questions")
    for name, stage in stages.items():
        if "data" in stage and str(stage["data"]) not in datasets:
            errors.append(f"stages.{name}.data: {unknown(str(stage['data']), 'datasets', datasets)}")
    prefixes: dict[str, list[str]] = {}
    for schedule in schedules:
        label = "-".join(schedule)
        errors += [
            f"schedules: '{label}' uses stage {unknown(stage, 'stages', stages)}"
            for stage in schedule
            if stages and stage not in stages
        ]
        if len(set(schedule)) != len(schedule):
            errors.append(f"schedules: '{label}' uses a stage twice; give the repeat a name of its own")
        for length in range(1, len(schedule) + 1):
            prefix = schedule[:length]
            if prefixes.setdefault("-".join(prefix), prefix) != prefix:
                errors.append(f"schedules: two lists of stages are both written '{'-'.join(prefix)}'; rename a stage")
        uses = [str(stages[stage].get("data")) for stage in schedule if stage in stages]
        if str(folded) in uses and any(data != str(folded) for data in uses[uses.index(str(folded)) :]):
            errors.append(f"schedules: '{label}' has a stage on other data after one on {folded}, which runs per fold")
        trained = {stage: _list(stages.get(stage, {}).get("train")) for stage in schedule}
        errors += _trained_after_lora(label, trained)
        if mapping(mapping(config.get("models")).get("language_model")).get("quantise"):
            errors += [
                f"schedules: '{label}' trains language_model in stage {stage}, whose weights are in 4 bits "
                "(models.language_model.quantise); train lora instead, or leave quantise out"
                for stage, parts in trained.items()
                if "language_model" in parts
            ]
        errors += _adapted_in_vain(label, config, {stage: mapping(stages.get(stage)) for stage in schedule})
        last = stages.get(schedule[-1], {}) if schedule else {}
        if folded is not None and "data" in last and str(last["data"]) != str(folded):
            errors.append(f"schedules: '{label}' must end on a stage that uses {folded}, on which it is evaluated")
    errors += _transfer_errors(config, datasets, folded)
    kind = mapping(config.get("connector")).get("kind", PROJECTOR_KIND)
    if "llava" in mapping(config.get("models")) and kind != PROJECTOR_KIND:
        errors.append(
            f"connector.kind: the projector of models.llava is of kind {PROJECTOR_KIND}, not {kind}; remove it"
        )
    named = {"-".join(schedule): schedule for schedule in schedules}
    leak = mapping(mapping(config.get("evaluation")).get("leak"))
    errors += [
        f"evaluation.leak.schedules: {unknown(str(name), 'schedules', named)}"
        for name in _list(leak.get("schedules"))
        if is_name(name) and str(name) not in named
    ]
    for kind, values in (("seeds", _list(config.get("seeds"))), ("schedules", schedules)):
        if any(value in values[:index] for index, value in enumerate(values)):
            errors.append(f"{kind}: an entry occurs twice")
    return errors


def _transfer_errors(config: Mapping[str, Any], datasets: Mapping[str, Any], folded: Any) -> list[str]:
    """Faults in the names of `evaluation.datasets`; what is trained on is known from the grid."""
    errors = []
    for name in filter(is_name, mapping(mapping(config.get("evaluation")).get("datasets"))):
        if str(name) not in datasets:
            errors.append(f"evaluation.datasets: {unknown(str(name), 'datasets', datasets)}")
        elif mapping(datasets[str(name)]).get("source") in caption_sources():
            errors.append(f"evaluation.datasets: '{name}' has captions; only questions can be asked")
        elif str(name) == str(folded):
            errors.append(f"evaluation.datasets: '{name}' is cut into folds; `snakemake test` asks its own test part")
    return errors


def _trained_after_lora(label: str, trained: Mapping[str, list]) -> list[str]:
    """Stages of a schedule, with the parts that each trains, that train the language model behind its adapters."""
    adapted = dropwhile(lambda stage: "lora" not in trained[stage], trained)
    return [
        f"schedules: '{label}' trains language_model in stage {stage} after lora in an earlier one, which is not "
        "merged into it; train the language model first, or lora in both"
        for stage in adapted
        if "language_model" in trained[stage] and "lora" not in trained[stage]
    ]


def _adapted_in_vain(label: str, config: Mapping[str, Any], stages: Mapping[str, Mapping]) -> Iterator[str]:
    """Stages that train adapters on a vision encoder without layers for them, without images, or with its weights."""
    adapted = [name for name, stage in stages.items() if "lora" in _list(stage.get("train"))]
    if not adapted or not mapping(config.get("lora")).get("vision_target_modules"):
        return
    if mapping(mapping(config.get("models")).get("vision_encoder")).get("source") == "package":
        yield (
            "lora.vision_target_modules: EfficientNet-Lite0 is convolutional, and has no linear layers for adapters; "
            "train vision_encoder instead"
        )
    for name in dropwhile(lambda stage: stage not in adapted, stages):
        if "vision_encoder" in _list(stages[name].get("train")):
            yield (
                f"schedules: '{label}' trains vision_encoder in stage {name}, which has adapters then "
                "(lora.vision_target_modules); train one of the two, or the encoder first"
            )
        if name in adapted and stages[name].get("blind"):
            yield (
                f"schedules: '{label}' trains lora in stage {name}, which is blind, so that nothing reaches the layers "
                "of lora.vision_target_modules; set these in an ablation without blind stages"
            )


def _with_valid_data(stage: Mapping) -> Mapping:
    return stage if is_name(stage.get("data")) else {key: value for key, value in stage.items() if key != "data"}


def unknown(name: str, kind: str, known: Mapping[str, Any]) -> str:
    """That a name is not under a section, with those that are and the one that may be meant."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"'{name}', which is not under {kind}: (known: {', '.join(known)}){hint}"


def mapping(value: Any) -> Mapping:
    """The value, or an empty mapping for what is none."""
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list:
    return value if isinstance(value, list) else []


def error_lines(raised: ValidationError) -> list[str]:
    """The errors that pydantic found in settings, a line each, in the words of the configuration file."""
    return [line for error in raised.errors() for line in _error_lines(error)]


def _error_lines(error: Mapping[str, Any]) -> list[str]:
    """One pydantic error in the words of the configuration file."""
    place = [str(part) for part in error["loc"] if not str(part).startswith("[")]
    # Behind models.<role> and datasets.<name> stands the value of `source`, which is no key of the file.
    if tagged := place[0] in ("models", "datasets"):
        del place[2:3]
    path = ".".join(place)
    match error["type"]:
        case "extra_forbidden" if SECRET.search(place[-1]):
            return [f"{path}: no key or password belongs in a configuration; log in, or set WANDB_API_KEY or HF_TOKEN"]
        case "extra_forbidden":
            close = difflib.get_close_matches(place[-1], _known_keys(error["loc"][:-1]), n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            return [f"{path}: not a known setting{hint}"]
        case "missing":
            return [f"{path}: required but missing"]
        case "union_tag_not_found":
            return [f"{path}.source: required but missing"]
        case "union_tag_invalid":
            return [f"{path}.source: must be one of {error['ctx']['expected_tags']}, not '{error['ctx']['tag']}'"]
        case "string_pattern_mismatch" if place[-1] == "revision":
            return [f"{path}: must be a full commit id of 40 hexadecimal digits, not {error['input']!r}"]
        case "list_type" if place[0] == "schedules":
            kind = "a list of stage names, such as [2, 3]" if len(place) > 1 else "a list of lists, such as [[2, 3]]"
            return [f"{path}: must be {kind}, not {error['input']!r}"]
        case "list_type" if place[-1] == "schedule":
            return [f"{path}: must be a list of stage names, such as [2, 3], not {error['input']!r}"]
        case "list_type":
            return [f"{path}: must be a list, such as [{error['input']}], not {error['input']!r}"]
        case "dict_type" if place[-1] == "learning_rate":
            return [f"{path}: must name a rate for each part that trains, such as {{connector: {error['input']}}}"]
        case "dict_type" | "model_type" | "model_attributes_type":
            known = _known_keys(error["loc"]) or (["source"] if tagged else [])
            keys = f" ({', '.join(known[:4])}{', ...' if len(known) > 4 else ''})" if known else ""
            return [f"{path}: must be a mapping of keys to values{keys}, not {error['input']!r}"]
        case "int_type":
            return [f"{path}: must be a whole number, not {_as_read(error['input'], int)}"]
        case "float_type":
            return [f"{path}: must be a number, not {_as_read(error['input'], float)}"]
        case "finite_number":
            return [f"{path}: must be a finite number, not {error['input']!r}"]
        case "bool_type":
            return [f"{path}: must be true or false, not {_as_read(error['input'], bool)}"]
        case "string_type" if isinstance(error["input"], bool):
            return [f"{path}: must be text, not {_as_read(error['input'], str)}; put it in quotes"]
        case "string_type" if isinstance(error["input"], int | float | date):
            return [f"{path}: must be text; put it in quotes: '{error['input']}'"]
        case "too_short":
            least = error["ctx"]["min_length"]
            return [f"{path}: must have {'an entry' if least == 1 else f'at least {least} entries'}"]
        case "value_error":
            message = str(error["ctx"]["error"])
            return [f"{path}: {line}" if path else line for line in message.splitlines()]
        case _:
            message = error["msg"].replace("Input should be", "must be")
            return [f"{path}: {message}, not {error['input']!r}"]


def _as_read(value: Any, wanted: type) -> str:
    """A value of another type, with what it was taken for where that is not seen in the file."""
    if isinstance(value, bool):
        return f"{str(value).lower()}, as which YAML reads {'yes and on' if value else 'no and off'}, too"
    if isinstance(value, float) and value.is_integer() and wanted is int:
        return f"{value!r}; write {value:.0f}"
    if isinstance(value, str) and wanted in (int, float):
        return f"the text {value!r}; write a number without quotes, such as {'3' if wanted is int else '1.0e-4'}"
    return repr(value)


def _known_keys(location: tuple) -> list[str]:
    """The keys allowed at a place in the configuration, found by walking the models."""
    schema = Settings.model_json_schema(by_alias=False)
    node: dict = schema
    for part in location:
        node = _resolve(node, schema)
        if str(part).startswith("["):  # tag of a union, which names the class
            node = schema["$defs"].get(part.strip("[]"), {})
        elif "discriminator" in node:
            mapping = node["discriminator"]["mapping"]
            node = _resolve({"$ref": mapping[part]}, schema) if part in mapping else {}
        elif part in node.get("properties", {}):
            node = node["properties"][part]
        else:
            node = node.get("additionalProperties") or node.get("items") or {}
    return list(_resolve(node, schema).get("properties", {}))


def _resolve(node: dict, schema: dict) -> dict:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return node
