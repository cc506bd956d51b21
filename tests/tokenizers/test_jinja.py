CONVERSATIONS = [
 [{"role":"user","content":"Hi"}],
 [{"role":"system","content":" Be  brief. "},{"role":"user","content":"Hi there\n"},{"role":"assistant","content":"<think>\nhm\n</think>\n\nYes."},{"role":"user","content":"\n Why e?"}],
 [{"role":"user","content":"x"},{"role":"assistant","content":"Hex"}],
]
SOURCES=[]
