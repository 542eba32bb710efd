"""What others report, as they do, for the tables of studies."""

COLUMNS = "network", "accuracy", "parameters", "epochs", "machine, time", "source"
# CIFAR-10 from scratch
RECIPES = (
    ("cifar10-tiniest", "94.4 %", "97,530", "200", "-", "github.com/xvel/cifar10-tiniest"),
    ("ResNet-8, MLPerf Tiny's target", "85 %", "78,000", "-", "-", "arXiv 2106.07597"),
    ("airbench94_muon", "94.01 %, averaged views", "-", "8", "A100, 2.6 s",
     "github.com/KellerJordan/cifar10-airbench"),
    ("airbench96", "96.03 %, averaged views", "-", "37", "A100, 34.7 s", "arXiv 2404.00498"),
    ("cifar10-speedrun", "94.01 %, averaged where uncertain", "-", "7.6", "A100, 2.0 s",
     "github.com/hiverge/cifar10-speedrun"),
    ("ResNet, DAWNBench 2017's on processors", "94 %", "-", "-", "16 cores, 101 to 128 hours",
     "dawn.cs.stanford.edu/benchmark"),
)
