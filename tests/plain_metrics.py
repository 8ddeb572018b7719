"""Average precision and ROC AUC by definition, to check the fast ones against."""


def plain_average_precision(scores: list[float], positive: list[bool]) -> float:
    """AP by definition, threshold by threshold: a positive counts with the best precision at its rank or below."""
    precision, recall = [], []
    for threshold in sorted(set(scores), reverse=True):
        chosen = [truth for score, truth in zip(scores, positive, strict=True) if score >= threshold]
        precision.append(sum(chosen) / len(chosen))
        recall.append(sum(chosen) / sum(positive))
    steps = zip(recall, [0, *recall[:-1]], strict=True)
    return sum((after - before) * max(precision[index:]) for index, (after, before) in enumerate(steps))


def plain_auc(scores: list[float], positive: list[bool]) -> float:
    """Share of (positive, negative) pairs in the right order; ties count half."""
    yes = [score for score, truth in zip(scores, positive, strict=True) if truth]
    no = [score for score, truth in zip(scores, positive, strict=True) if not truth]
    return sum((a > b) + (a == b) / 2 for a in yes for b in no) / (len(yes) * len(no))
