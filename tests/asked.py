"""A folder with a tiny LLaVA, its tokenizer and its processor, for the tests of asking."""

from foveal.vlm.tiny import IMAGE, PATCH, SIDE, WORDS, tiny

NOUNS = "river lamp seven stone paper cloud chair north green table"


def llava_folder(folder):
    """Write the folder; the words of its language are 57."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

    words = ["[PAD]", "<s>", "</s>", "[pic]", "[/pic]", "<image>", "<film>", "?", "what", "is", "this", *NOUNS.split()]
    words += [f"word{i}" for i in range(len(words), WORDS)]
    assert words[IMAGE] == "<image>"
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens([AddedToken(word, special=True) for word in words[:7]])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", bos_token="<s>", eos_token="</s>", unk_token="?"
    )
    pictures = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
    )
    model = tiny("llava")
    model.generation_config.suppress_tokens = list(range(7))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
