from . import attacks as attacks
from . import classical as classical
from . import compat as compat
from . import data as data
from . import evaluation as evaluation
from . import functional as functional
from . import hub as hub
from . import metric as metric
from . import pairwise as pairwise
from . import plots as plots
from . import scoring as scoring
from . import torchmetrics as torchmetrics
from . import training as training
from ._version import __version__ as __version__
from .compat import (
    DSSIM as DSSIM,
)
from .compat import (
    L2 as L2,
)
from .compat import (
    BCERankingLoss as BCERankingLoss,
)
from .compat import (
    Dist2LogitLayer as Dist2LogitLayer,
)
from .compat import (
    FakeNet as FakeNet,
)
from .compat import (
    Trainer as Trainer,
)
from .compat import (
    dssim as dssim,
)
from .compat import (
    im2tensor as im2tensor,
)
from .compat import (
    l2 as l2,
)
from .compat import (
    np2tensor as np2tensor,
)
from .compat import (
    print_network as print_network,
)
from .compat import (
    psnr as psnr,
)
from .compat import (
    rgb2lab as rgb2lab,
)
from .compat import (
    score_2afc_dataset as score_2afc_dataset,
)
from .compat import (
    score_jnd_dataset as score_jnd_dataset,
)
from .compat import (
    tensor2im as tensor2im,
)
from .compat import (
    tensor2np as tensor2np,
)
from .compat import (
    tensor2tensorlab as tensor2tensorlab,
)
from .compat import (
    tensor2vec as tensor2vec,
)
from .compat import (
    tensorlab2tensor as tensorlab2tensor,
)
from .compat import (
    voc_ap as voc_ap,
)
from .data import (
    JND as JND,
)
from .data import (
    TwoAFC as TwoAFC,
)
from .data import (
    make_triplets as make_triplets,
)
from .errors import (
    CheckpointError as CheckpointError,
)
from .errors import (
    DatasetError as DatasetError,
)
from .errors import (
    ImageError as ImageError,
)
from .errors import (
    MissingExtraError as MissingExtraError,
)
from .errors import (
    UndefinedDistanceError as UndefinedDistanceError,
)
from .errors import (
    WeightsUnavailableError as WeightsUnavailableError,
)
from .export import (
    export_metric as export_metric,
)
from .hub import (
    WeightsEntry as WeightsEntry,
)
from .hub import (
    list_weights as list_weights,
)
from .images import (
    load_image as load_image,
)
from .metric import (
    LPIPS as LPIPS,
)
from .metric import (
    NetLinLayer as NetLinLayer,
)
from .metric import (
    ScalingLayer as ScalingLayer,
)
from .metric import (
    normalize_tensor as normalize_tensor,
)
from .metric import (
    spatial_average as spatial_average,
)
from .metric import (
    upsample as upsample,
)
from .scoring import (
    distance as distance,
)
