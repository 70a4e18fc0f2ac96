import torch
import torch.nn.functional as F

from foveal.evidence.rivals.channel_attention import ChannelAttention


def test_channels_are_the_tokens():
    torch.manual_seed(0)
    layer, x = ChannelAttention(6, 2), torch.randn(2, 6, 5, 7)
    with torch.no_grad():
        layer.temperature.copy_(torch.tensor([0.5, 2.0]).view(2, 1, 1))
        query, key, value = layer.qkv_dwconv(layer.qkv(x)).view(2, 3, 2, 3, 35).unbind(1)
        wanted = torch.zeros(2, 2, 3, 35)
        for b in range(2):
            for h in range(2):
                for i in range(3):
                    scores = torch.stack([F.cosine_similarity(query[b, h, i], k, dim=0) for k in key[b, h]])
                    wanted[b, h, i] = (scores * layer.temperature[h, 0, 0]).softmax(0) @ value[b, h]
        torch.testing.assert_close(layer(x), layer.project_out(wanted.view_as(x)))
