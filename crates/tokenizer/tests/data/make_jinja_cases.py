"""Writes jinja_cases.json: fragments of templates with what Jinja2 makes of them.

The environment is the one that huggingface/transformers gives to chat templates. Needs `pip install jinja2`:
    python make_jinja_cases.py > jinja_cases.json
An answer of null is an error.
"""

import datetime
import json
import sys

import jinja2
import jinja2.ext
import jinja2.sandbox

VARIABLES = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi <b>there</b>, it's \"me\" & co"},
        {"role": "assistant", "content": "Hello", "tool_calls": [{"name": "f", "arguments": {"x": 1, "y": [1.5, None, True]}}]},
        {"role": "user", "content": "naïve 世界 😀"},
    ],
    "numbers": [3, 1, 2, 10, -4],
    "floats": [0.1, 2.5, -3.75, 1e20, 1e-7, 1.0],
    "words": ["banana", "Apple", "cherry", "apple"],
    "text": "The quick brown fox jumps over the lazy dog",
    "lines": "one\ntwo\n\n  three  \r\nfour",
    "people": [
        {"name": "Ann", "age": 30, "city": {"name": "Bern"}},
        {"name": "bob", "age": 25, "city": {"name": "Rome"}},
        {"name": "Cid", "age": 30, "city": {"name": "Oslo"}},
    ],
    "tree": [{"v": 1, "c": [{"v": 2, "c": [{"v": 3, "c": []}]}, {"v": 4, "c": []}]}],
    "d": {"b": 2, "A": 1, "items": 3, "c": None},
    "n": 7,
    "x": 2.5,
    "t": True,
    "none_value": None,
    "empty": [],
    "html": "<p class=\"a\">Hi &amp; <!-- no --> bye</p>\n\n  x",
    "url": "see https://example.com/a?b=c, www.test.org or me@example.com.",
}

FILTERS = """
-5|abs  -2.5|abs  'a'|abs  true|abs
d|attr('b')  text|attr('upper')  n|attr('real')
numbers|batch(2)|list  numbers|batch(3,'-')|list  numbers|batch(0)|list  empty|batch(2)|list
'hELLO wORLD'|capitalize  ''|capitalize  5|capitalize
'ab'|center(7)  'ab'|center(6)  'abc'|center(6)  'abc'|center  'a'|center(width=3)  'é'|center(4)
numbers|count  d|length  text|length  5|length  '世界😀'|length  (numbers|map('abs'))|length
missing|default('x')  ''|default('x')  ''|default('x', true)  missing|d  none_value|d('x')  missing|default(default_value='q')  0|d('z', boolean=true)
d|dictsort  d|dictsort(true)  {'b':1,'a':2}|dictsort(by='value')  {'b':1,'a':2}|dictsort(reverse=true)  d|dictsort(by='nothing')  numbers|dictsort
html|e  html|escape|escape  html|forceescape  ('<'|e) + '<'  ('<'|e) ~ '<'  '<'|safe  ('<'|safe) + '<'  5|e  ['<']|e  ('<a>'|e)|upper
1|filesizeformat  999|filesizeformat  1000|filesizeformat  1500000|filesizeformat  1024|filesizeformat(true)  1e12|filesizeformat  '5000'|filesizeformat  10**27|filesizeformat
numbers|first  empty|first  text|first  d|first  (empty|first) is defined
'3.5'|float  'x'|float  'x'|float(1.5)  '1e3'|float  none_value|float  5|float  '1_000'|float  'inf'|float  missing|float
'%s and %d'|format('a', 5)  '%(a)s'|format(a=1)  '%s'|format  '%s'|format(1, 2)  '%5.2f'|format(3.14159)
people|groupby('age')|list  people|groupby('age')|map(attribute='grouper')|list  people|groupby('city.name')|map('first')|list  people|groupby('nothing', default='z')|length  words|groupby(0)|list
lines|indent  lines|indent(2, true)  lines|indent(2, blank=true)  lines|indent('>> ')  'a'|indent(first=true)  ''|indent(3, true)  'a\n'|indent
'42'|int  '3.9'|int  'x'|int  'x'|int(7)  '0x1f'|int(0,16)  '1f'|int(base=16)  '0b11'|int(0,2)  3.99|int  -3.99|int  none_value|int  '  8 '|int  '077'|int  '-5'|int  true|int
d|items|list  none_value|items|list  missing|items|list  numbers|items|list
numbers|join  numbers|join(', ')  people|join('/', attribute='name')  'abc'|join('-')  empty|join  [1,'a',none,true]|join(' ')  ['a',['b']]|join(',')  d|join('+')
numbers|last  text|last  empty|last  d|last  (numbers|map('abs'))|last
'abc'|list  d|list  (1,2)|list  5|list  range(3)|list  none_value|list
'ÄB'|lower  'äß'|upper  5|lower  none_value|upper
numbers|map('abs')|list  people|map(attribute='name')|list  people|map(attribute='city.name')|join(' ')  people|map(attribute='zip', default='?')|list  words|map('replace','a','o')|list  words|map('upper')|join  words|map('nothing')|list  [[1,2],[3]]|map('first')|list  [[1,2],[3,4]]|map(attribute=1)|list  numbers|map|list
numbers|max  words|max  words|max(true)  people|max(attribute='age')  empty|max  numbers|min  words|min(case_sensitive=true)  [1,'a']|max  [1,2.5,true]|min
d|pprint  text|pprint  [1,'a',none]|pprint  people|pprint  {'b':1,'a':{'d':1,'c':2}}|pprint
[5]|random  empty|random
numbers|reject('odd')|list  numbers|reject('gt', 2)|list  [0,1,'']|reject|list  people|rejectattr('age','equalto',30)|map(attribute='name')|list  people|rejectattr('age')|list
'aXbX'|replace('X','-')  'aXbX'|replace('X','-',1)  123|replace(2,'x')  'abc'|replace('','-')  'a.b'|replace('.', '')
'abc'|reverse  numbers|reverse|list  d|reverse|list  (1,2)|reverse|list  5|reverse  (numbers|map('abs'))|reverse  range(3)|reverse|list
2.5|round  3.5|round  2.675|round(2)  1234.567|round(-2)  42|round  42.1|round(1,'ceil')  42.19|round(1,'floor')  42.5|round(0,'up')  -2.5|round  1e20|round(2)  55|round(-1)  65|round(-1)  2.5|round|int  true|round  0.125|round(2)
numbers|select('odd')|list  numbers|select('>', 1)|list  [0,1,'',none,'a']|select|list  people|selectattr('age','gt',26)|map(attribute='name')|list  people|selectattr('city')|list|length  people|selectattr('city.name','equalto','Rome')|list  messages|selectattr('role','in',['user','system'])|map(attribute='role')|list  messages|selectattr('tool_calls','defined')|list|length  numbers|select('divisibleby',2)|list  numbers|select('nothing')|list
numbers|slice(2)|list  numbers|slice(3,'-')|list  numbers|slice(7)|list  numbers|slice(0)|list
numbers|sort  numbers|sort(true)  words|sort  words|sort(case_sensitive=true)  people|sort(attribute='age')|map(attribute='name')|list  people|sort(attribute='age,name', reverse=true)|map(attribute='name')|list  [1,'a']|sort  'bca'|sort  [3.5,1,true]|sort  [[2,1],[1,5]]|sort  people|sort  d|sort
5|string  none_value|string  [1]|string  missing|string
html|striptags  '<b>x'|striptags  'a < b > c'|striptags  5|striptags  '&lt;b&gt; &#39;q&#39; &#x41;'|striptags
numbers|sum  numbers|sum(start=100)  people|sum(attribute='age')  [[1],[2]]|sum(start=[])  floats|sum  empty|sum  words|sum  words|sum(start='')
'hello wORLD-foo (bar) it\\'s'|title  'a_b c1d'|title  ''|title
d|tojson  messages[2]|tojson  'a<b>&\\'"é😀\\n'|tojson  'é😀'|tojson(ensure_ascii=true)  [1,[2,{'a':3}]]|tojson(indent=2)  {}|tojson(indent=2)  d|tojson(sort_keys=true)  [1,2]|tojson(separators=(',',':'))  floats|tojson  missing|tojson  (1,2)|tojson  {1:2,none:3,true:4,1.5:5}|tojson  [1,2]|tojson(indent=1, separators=(',',': '))  [1]|tojson(none, 4)  [1]|tojson(4)  range(3)|tojson  numbers|map('abs')|tojson  d.keys()|tojson  '\\x7f\\x00'|tojson  [[],[[]]]|tojson(indent='--')
'  a b '|trim  'xxaxx'|trim('x')  5|trim  '\\n\\ta '|trim  'abcba'|trim('ab')
text|truncate(10)  text|truncate(10, true)  text|truncate(10, true, '')  text|truncate(42)  text|truncate(38, leeway=0)  text|truncate(10, end='…')  'aaaaaaaaaaaaaaaaaaaa'|truncate(10)  text|truncate(2)  'ab cd'|truncate(3, leeway=0)  text|truncate(length=11, killwords=false)
words|unique|list  words|unique(true)|list  people|unique(attribute='age')|map(attribute='name')|list  [1,1.0,true,'1']|unique|list  [[1],[1]]|unique|list
'a b/c?d=é&'|urlencode  {'a b':1,'c':'é/'}|urlencode  [('a','b'),('c',1)]|urlencode  5|urlencode  ''|urlencode  [1]|urlencode
url|urlize  url|urlize(10)  url|urlize(target='_blank')  'http://x.org'|urlize(nofollow=true)  'plain <b>'|urlize
text|wordcount  'a-b c_d é'|wordcount  ''|wordcount  5|wordcount
text|wordwrap(10)  text|wordwrap(10, wrapstring='|')  'abcdefghijkl mn'|wordwrap(5)  'abcdefghijkl mn'|wordwrap(5, false)  lines|wordwrap(4)  'well-known fact'|wordwrap(7)  text|wordwrap(0)
{'class':'a b','id':none,'x':'<'}|xmlattr  {'a':1}|xmlattr(false)  {}|xmlattr  {'a b':1}|xmlattr  numbers|xmlattr
numbers|nothing  text|upper|lower|title  numbers|sort|first  -n|abs  (-n)|abs  n|string + 'x'  'a' ~ n|string ~ 'b'  text|upper()  text|d('x')|length + 1
""".strip().splitlines()

TESTS = """
t is boolean  1 is boolean  n is callable  text.upper is callable  range is callable  namespace is callable
10 is divisibleby 5  10 is divisibleby(3)  10 is divisibleby 0  'a' is divisibleby 2
missing is defined  n is defined  d.zip is defined  d['zip'] is defined  n is not defined  missing.a is defined
n == 7  n is eq 7  n is equalto 7  n is sameas 7  none_value is sameas none  1 is sameas true  [] is sameas []  'a' is sameas 'a'
('<'|e) is escaped  'a' is escaped
4 is even  n is even  n is odd  4.0 is even  'a' is odd  -3 is odd
false is false  0 is false  true is true  1 is true  1 is not true
'abs' is filter  'nothing' is filter  'odd' is test  'nothing' is test
1.5 is float  1 is float  true is float  1 is integer  true is integer  1.0 is integer
3 is ge 3  3 is gt 3  3 is le 2  3 is lt 4  3 is greaterthan 2  3 is lessthan 2  'a' is lt 'b'  1 is lt 'a'  3 is ne 3
1 is in [1,2]  'a' is in 'abc'  5 is not in [1,2]  'b' is in d
[] is iterable  'a' is iterable  5 is iterable  d is iterable  none is iterable  missing is iterable  range(2) is iterable
'abc' is lower  'aBc' is lower  'ABC' is upper  '1' is upper  'A1' is upper
d is mapping  [] is mapping  namespace(a=1) is mapping
none_value is none  0 is none  missing is none
1 is number  1.5 is number  true is number  '1' is number
[] is sequence  (1,2) is sequence  'abc' is sequence  d is sequence  5 is sequence  range(3) is sequence  none is sequence  (numbers|map('abs')) is sequence  d.items() is sequence  missing is sequence
'a' is string  1 is string  ('a'|e) is string
missing is undefined  n is undefined  n is nothing  n is odd and t  n is odd or false  not n is odd  n is not odd  n is odd is even
""".strip().splitlines()

METHODS = """
'abc'.capitalize()  'ÀB'.casefold()  'ab'.center(5)  'ab'.center(5,'*')  'abc'.center(6,'*')  'banana'.count('a')  'banana'.count('a',2)  'banana'.count('')  'aaa'.count('aa')
'abc'.endswith('c')  'abc'.endswith(('x','c'))  'abc'.startswith('b',1)  'abc'.startswith(('a','b'))  'abc'.startswith(['a'])  'a\\tb'.expandtabs()  'a\\tb'.expandtabs(4)
'banana'.find('an')  'banana'.find('an',2)  'banana'.find('x')  'banana'.index('n')  'banana'.index('x')  'banana'.rfind('an')  'banana'.rindex('a')  'é世a'.find('a')
'{} {}'.format(1,'a')  '{1} {0}'.format(1,2)  '{a}'.format(a=5)  '{:>5}|{:<5}|{:^5}'.format('a','b','c')  '{:05d}'.format(42)  '{:.2f}'.format(3.14159)  '{0.real}'.format(5)  '{0[a]}'.format({'a':1})  '{:,}'.format(1234567)  '{:x}'.format(255)  '{:#x}'.format(255)  '{:e}'.format(12345.678)  '{:%}'.format(0.25)  '{!r}'.format('a')  '{{}}'.format()  '{'.format()  '{:d}'.format('a')  '{}'.format()  '{:+d}'.format(5)  '{:*^9}'.format('mid')  '{:g}'.format(1e10)  '{:b}'.format(5)  '{:.3}'.format('abcdef')  '{:10.3f}|'.format(2.5)  '{a[0]} {b.c}'.format(a=[1],b={'c':2})  '{:_}'.format(1234567)  '{:>{w}}'.format('a', w=4)  '{:.3}'.format(2.0)  '{:.3g}'.format(1234.5)  '{:n}'.format(5)  '{:c}'.format(65)  '{x}'.format_map({'x': 3})
'ab1'.isalnum()  'ab'.isalpha()  ''.isalpha()  'é'.isascii()  '12'.isdecimal()  '²'.isdigit()  '½'.isnumeric()  'a_1'.isidentifier()  '1a'.isidentifier()  'ab'.islower()  'a\\n'.isprintable()  ' \\t'.isspace()  'Ab Cd'.istitle()  'AB'.isupper()  '12'.isdigit()  '-1'.isdigit()
'-'.join(['a','b'])  '-'.join([1])  ''.join('abc')  ', '.join(d)  'ab'.ljust(5,'.')  'ab'.ljust(1)  'ab'.rjust(5)  'ab'.rjust(5,'..')  'AbC'.lower()  '  a '.lstrip()  'xxa'.lstrip('x')  'a.b.c'.partition('.')  'abc'.partition('.')  'a.b.c'.rpartition('.')  'abc'.rpartition('.')  'abc'.partition('')
'abc'.removeprefix('a')  'abc'.removeprefix('x')  'abc'.removesuffix('bc')  'aXbXc'.replace('X','-')  'aXbXc'.replace('X','-',1)  'abc'.replace('','-')  'aXbXc'.replace('X','-',-1)
'a b  c'.split()  'a,b,,c'.split(',')  'a b c'.split(' ',1)  'a b c'.split(maxsplit=1)  'a,b,c'.split(sep=',', maxsplit=1)  ''.split()  ''.split(',')  'a b'.split('')  '  a  b '.split(none)  'a b c'.rsplit(' ',1)  'a b c'.rsplit(maxsplit=1)  'a,b,c'.rsplit(',')  ' a b  c '.rsplit(none,1)  ' a b  c '.split(none,1)  'a--b-c'.rsplit('-', 2)
lines.splitlines()  lines.splitlines(true)  'a\\r\\nb'.splitlines(keepends=true)  '  a '.rstrip()  'abcc'.rstrip('c')  ' a '.strip()  'xyax'.strip('xy')  'aBc'.swapcase()  "they're bill's".title()  'hELLO wORLD'.title()  'aß'.upper()  '42'.zfill(5)  '-42'.zfill(5)  'abc'.zfill(2)  'abc'.translate({97: 'X', 98: none})  'abc'.nothing()  'abc'.encode
[1,2,1].count(1)  [1,2,1].index(2)  [1].index(5)  [1].append(2)  [1,2].copy()  (1,2,1).count(1)  (1,2).index(2)  [3,1].sort()  [1].pop()
d.get('b')  d.get('zip')  d.get('zip', 5)  d.keys()  d.values()  d.items()  d.items  d['items']  d.keys()|list  d.copy()  d.pop('b')  d.update({})  d.b  d['b']  d.zip  d['zip']  d.setdefault('q', 1)  dict.fromkeys
d.items()|length  (d.items()|list)[0]  (d.items()|list)[0][0]  d.keys()|first  d.values()|list|length  'b' in d.keys()  2 in d.values()  d.keys() == d.keys()
n.bit_length()  n.real  2.0.is_integer()  x.is_integer()  x.real  n.nothing  (5).bit_length()
text.upper().lower().split(' ')[0]  text['upper']()  text.split()[-1][::-1]  messages[0].content.upper()  messages[0]['role'].title()
""".strip().splitlines()

EXPRESSIONS = """
1 + 2 * 3  (1 + 2) * 3  7 / 2  7 // 2  -7 // 2  7 % 3  -7 % 3  7 % -3  2 ** 10  2 ** -1  2 ** 3 ** 2  1 / 0  1 % 0  7.5 // 2  7.5 % 2  -7.5 % 2  1e400  10 ** 20  2 ** 0.5  -2 ** 2  0.1 + 0.2  1_000  0x1f  0b101  0o17  1.5e3  4 / 2  1e16  1e15  123456789.123456789  1e22  5 // 0.3
'a' + 'b'  'a' + 1  'a' ~ 1 ~ none ~ true ~ 1.0  [1] + [2]  (1,) + (2,)  [1] + (2,)  'ab' * 3  3 * 'ab'  [1] * 2  (1,2) * 2  'a' * -1  'a' * 1.5  none + 1  true + true  'a' - 'b'  missing + 1  missing ~ 'a'  {} + {}  [1] - [1]
'%s' % 'a'  '%d items' % 5  '%s, %s' % ('a', 1)  '%(a)s' % {'a': 1}  '%5d|%-5d|%05d' % (1, 2, 3)  '%.2f' % 3.14159  '%e' % 12345.678  '%g' % 0.00001  '%g' % 123456789  '%x %X %o' % (255, 255, 8)  '%#x' % 255  '%c' % 65  '%c' % 'a'  '%%' % ()  '%s' % [1]  '%s' % none  '%r' % 'a'  '%+d' % 5  '% d' % 5  '%d' % 'a'  '%d' % 3.9  '%s %s' % 'a'  '%s' % ('a', 'b')  '%s' % ((1, 2),)  '%10.3s|' % 'abcdef'  '%*d' % (5, 42)  '%z' % 1  'plain' % ()  'plain' % 1  'plain' % {'a': 1}  '%i' % true  '%a' % 'é'  '%.3d' % 5  '%s' % x
1 < 2  1 < 2 < 3  3 > 2 > 2  1 == 1.0  1 == true  '1' == 1  [1,2] == [1,2]  [1] == (1,)  'a' < 'b'  'a' < 1  [1,2] < [1,3]  none == none  none < 1  missing == missing  missing < 1  1 != 2  {'a':1} == {'a':1.0}  1 <= 1 >= 1  (1,2) < (1,2,3)
1 in [1,2]  'a' in 'abc'  'x' not in 'abc'  1 in 'abc'  'b' in d  2 in d  1 in 5  'a' in missing  none in [none]  not 1 in [2]  3 in range(5)  1.0 in [1]  missing in [1]
true and false  1 and 'a'  0 or 'b'  not 0  not not 1  none or missing  true or missing.x  1 and 2 and 3  0 and missing.x  1 or 0 and 0
'a' if t else 'b'  'a' if false  ('a' if false) is defined  1 if 0 else 2 if 0 else 3  (1 if t else 2) + 3  'x' if missing else 'y'
numbers[0]  numbers[-1]  numbers[99]  numbers['a']  numbers[1:3]  numbers[::-1]  numbers[:-1]  numbers[::2]  numbers[3:1:-1]  text[0]  text[-3:]  text[4:9]  text[::-1]  text[100]  d['b']  d.b  numbers.0  numbers[0:2][1]  (1,2,3)[1:]  text[1:2:0]  'abc'[true]  numbers[1.0]  numbers[-2:]  numbers[none:2]  range(10)[2:8:2]  range(10)[3]  '世界😀'[1]  messages[0].role  messages[0]['content']  messages[9].role  missing.x  missing['x']  none_value.x  d.b.c  d.b.c.d  text[:3] + text[-3:]  5[0]
(1, 2)  (1,)  ()  1, 2  [1, 'a', none, true, 1.5, [2], (3,), {'k': 'v'}]  {}  {'a': 1, 2: 'b', none: 3}  {'a': 1, 'a': 2}  [1, 2,]  {'a': 1,}  "it's"  'say "hi"'  ["it's", 'say "hi"', '"\\'']  ['\\n\\t\\\\é\\x00\\x7f\\u200b\\xa0😀']  {[1]: 2}  (1, (2, 3))  [[]]  [none, true, false]  [missing]  ['a' 'b']  'a' 'b'
'\\x41\\u00e9\\n'|length  'a\\'b'  "a\\"b"  '\\q'  '\\101'  'tab\\there'  '{{ }}'  '{% x %}'
n  x  t  none_value  none  None  True  true  false  False  missing  floats  numbers  d  people[0]  1.0  100000000000000000000.0  1e-5  -0.0  0.0001  1e100  3.0e-10
range(5)  range(2, 8, 3)|list  range(5, 0, -2)|list  range(0)|list  range(1, 2, 0)  range('a')  range(100001)  range(3)|length  range(3)[-1]  range(1,3) == range(1,3)  range(0,3,2)  range(1.5)
dict(a=1, b='x')  dict([('a', 1)])  dict({'a': 1}, b=2)  dict()  dict(1)  dict(d, b=9).b  namespace(a=1).a  namespace(a=1).b  namespace({'a': 5}).a  namespace(a=1)
joiner()()  joiner('|')()  cycler(1,2).next()  cycler(1,2).current  cycler()
strftime_now('%Y-%m-%d')  strftime_now('%H:%M:%S')  strftime_now('%A %a %B %b %d %j')  strftime_now('%c')  strftime_now('%x %X')  strftime_now('%I %p %P %l %k')  strftime_now('%U %W %V %G %g %u %w')  strftime_now('%y %C %e %h %D %F %T %R %r')  strftime_now('%s')  strftime_now('%n%t%%')  strftime_now('%Z|%z|')  strftime_now('%-d %-m %_d %05d %^a %#p')  strftime_now('%Q')  strftime_now('%f')  strftime_now('%')  strftime_now('%Ey %Od')  strftime_now('')  strftime_now()  strftime_now('%-H %-I %-j %-M %-S %-y')  strftime_now('%10Y|%_5m|%^B')  strftime_now('é %d 世')
raise_exception('no')  lipsum is callable  messages|length  nothing()  n()  text()  caller()  loop  self is defined  text.__class__  ''.__class__.__mro__  d.__class__  _  messages.0.role  (((n)))  n.__add__(1)  not n == 7  -n  +n  - -n  -x  -'a'  not missing  (n)  "a" "b" ~ "c"  1 is odd == true
""".strip().splitlines()

STATEMENTS = [
    "{% for i in numbers %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }} {% endfor %}",
    "{% for i in numbers %}{{ loop.previtem }}|{{ loop.nextitem }};{% endfor %}",
    "{% for i in numbers %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% for i in [1,1,2,2,1] %}{{ loop.changed(i) }} {% endfor %}",
    "{% for i in empty %}x{% else %}none{% endfor %}",
    "{% for i in numbers if i > 1 %}{{ i }}{{ loop.length }} {% else %}none{% endfor %}",
    "{% for i in numbers if i > 100 %}{{ i }}{% else %}none{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k in d %}{{ k }}{% endfor %}",
    "{% for a, b in [(1,2),[3,4],'xy'] %}{{ a }}{{ b }} {% endfor %}",
    "{% for a, b in [(1,2,3)] %}{{ a }}{% endfor %}",
    "{% for (a, b), c in [((1,2),3)] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for i in 5 %}{% endfor %}",
    "{% for i in missing %}x{% else %}e{% endfor %}",
    "{% for i in none %}x{% endfor %}",
    "{% for c in 'héy' %}[{{ c }}]{% endfor %}",
    "{% for n in tree recursive %}{{ n.v }}{{ loop.depth }}{{ loop.depth0 }}{% if n.c %}({{ loop(n.c) }}){% endif %}{% endfor %}",
    "{% for n in tree %}{{ loop(n.c) }}{% endfor %}",
    "{% for i in numbers %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in numbers %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
    "{% break %}",
    "{% for i in [1,2] %}{% for j in [1,2] %}{{ loop.index }}{% if j == 1 %}{% break %}{% endif %}{% endfor %}{{ loop.index }};{% endfor %}",
    "{% for i in numbers %}{{ loop }} {% endfor %}",
    "{% for i in [1,2,3] %}{{ x }}{% set x = i %}{{ x }} {% endfor %}{{ x }}",
    "{% set y = 1 %}{% for i in [1,2] %}{{ y }}{% set y = i + 10 %}{% endfor %}{{ y }}",
    "{% for i in [1,2,3] %}{{ q }}{% set q = i %}{% endfor %}{{ q }}",
    "{% set ns = namespace(n=0, seen=[]) %}{% for i in numbers %}{% set ns.n = ns.n + i %}{% set ns.seen = ns.seen + [i] %}{% endfor %}{{ ns.n }} {{ ns.seen }} {{ ns }}",
    "{% set ns = namespace() %}{{ ns.a }}{% set ns.a = 5 %}{{ ns.a }}{{ ns['a'] }}",
    "{% set d.b = 5 %}", "{% set missing.b = 5 %}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set a = 1, 2 %}{{ a }}", "{% set (a, b) = (1, 2) %}{{ b }}{{ a }}", "{% set a, b = 1 %}", "{% set a %}x{{ n }}{% endset %}[{{ a }}]",
    "{% set a | upper | replace('X', 'y') %}x{{ n }}x{% endset %}[{{ a }}]", "{% set a = n %}{% if t %}{% set a = 9 %}{% endif %}{{ a }}", "{% set none = 1 %}", "{% set a = %}",
    "{% if n > 5 %}a{% elif n > 3 %}b{% else %}c{% endif %}", "{% if n > 50 %}a{% elif n > 3 %}b{% else %}c{% endif %}", "{% if missing %}a{% else %}c{% endif %}", "{% if %}{% endif %}", "{% if n %}", "{% endif %}", "{% if n %}{% endfor %}",
    "{% if missing is defined and missing.x %}a{% else %}b{% endif %}", "{% if (n) %}y{% endif %}", "{% if n, %}y{% endif %}",
    "{% macro m(a, b=2, c=b) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }}|{{ m(1, 5) }}|{{ m(a=3, c=4) }}|{{ m() }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, b=2) }}", "{% macro m(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, b=4) }}",
    "{% macro m() %}{{ caller() }}!{% endmacro %}{% call m() %}body {{ n }}{% endcall %}", "{% macro m(xs) %}{% for x in xs %}{{ caller(x) }};{% endfor %}{% endmacro %}{% call(i) m([1,2]) %}<{{ i }}>{% endcall %}",
    "{% macro m() %}x{% endmacro %}{% call m() %}b{% endcall %}", "{% macro m() %}{{ n }}{% set n = 1 %}{{ n }}{% endmacro %}{{ m() }}{{ n }}", "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}B{% endmacro %}{{ a() }}",
    "{% macro m(a, b) %}{{ a }}{{ b is defined }}{% endmacro %}{{ m(1) }}", "{% macro m(a=1, b) %}{% endmacro %}", "{% macro m(n) %}{% if n > 0 %}{{ n }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(5) }}",
    "{% macro m() %} x {% endmacro %}[{{ m() | trim }}]{{ m.name }}{{ m.arguments }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m }}", "{{ m() }}{% macro m() %}x{% endmacro %}", "{% macro m() %}a{% endmacro %}{{ m() ~ m() }}{{ m()|length }}",
    "{% for i in [1,2] %}{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% endfor %}",
    "{% filter upper %}a{{ text[:3] }}{% endfilter %}", "{% filter trim | replace('a', 'b') %} aa {% endfilter %}", "{% filter center(7) %}x{% endfilter %}|",
    "{% with a = 1, b = n %}{{ a }}{{ b }}{% endwith %}{{ a }}", "{% with %}{% set z = 1 %}{{ z }}{% endwith %}{{ z }}", "{% with a = 1, b = a %}{{ b }}{% endwith %}",
    "{% raw %}{{ n }}{% x %}{% endraw %}", "{%- raw -%} a {%- endraw -%} b", "{% raw %}\n a\n {% endraw %}\n b", "a {# c #} b", "a {#- c -#} b", "a\n{# c #}\nb", "{# unclosed", "{{ n", "{% if n", "{{ }}", "{% %}", "{{ n }} }}", "{{ 'a' }", "%} }} #}",
    "{% generation %}a{{ n }}{% endgeneration %}b", "{% for i in [1] %}{%- generation %} {{ i }} {% endgeneration -%} {% endfor %}",
    "{% autoescape true %}{{ 'a' }}{% endautoescape %}", "{% block a %}x{{ n }}{% endblock %}", "{% block a %}x{% endblock a %}y", "{% include 'x' %}", "{% extends 'x' %}", "{% import 'x' as y %}", "{% from 'x' import y %}", "{% nothing %}", "{% do n %}", "{% print n, 2 %}", "{% print 'a' %}",
    "  {% if t %}\n    a\n  {% endif %}\n  b", "x {% if t %} a {% endif %} y", "  {%+ if t %}a{% endif %}", "x\n  {%- if t %}\n  a{% endif -%}\n\n  y", "{% if t +%}\na{% endif %}", "a\n  {{ n }}\n  b\n", "a\n\n", "\n{% if t %}\n\na\n\n{% endif %}\n\nb\n",
    "a\r\nb\rc\nd", "{% if t %}\r\na\r\n{% endif %}\r\nb", "{{ 'a\r\nb' }}", "{{- n -}} x", " {{- n }} ", " {{ n -}} x", "\t{% set a = 1 %}\t\nb", "{% for m in messages %}\n{{ m.role }}\n{% endfor %}\n.", "{%- for m in messages -%}\n {{ m.role }} \n{%- endfor -%}\n.",
    "{%- if messages[0]['role'] == 'system' -%}{{ '<|sys|>' + messages[0]['content'] + '\\n' }}{%- endif -%}", "{{ '<|im_start|>' ~ messages[1].role ~ '\\n' ~ messages[1].content | trim ~ '<|im_end|>' }}",
    "{% set loop_messages = messages[1:] %}{% for m in loop_messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}{{ m.content }}{% endfor %}",
    "{% for m in messages %}{% if m.tool_calls is defined and m.tool_calls %}{% for c in m.tool_calls %}{{ c.name }}({% for k, v in c.arguments|items %}{{ k }}={{ v|tojson }}{% if not loop.last %}, {% endif %}{% endfor %}){% endfor %}{% endif %}{% endfor %}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{% set x = c.reset() %}{{ c.current }}", "{% set j = joiner('|') %}{% for i in [1,2,3] %}{{ j() }}{{ i }}{% endfor %}", "{% set j = joiner() %}{{ j() }}{{ j() }}{{ j() }}",
    "{% set f = 'upper' %}{{ text | map(f) | join }}", "{% set x = numbers | map('abs') %}{{ x | list }}{{ x | list }}", "{% set g = numbers | select('odd') %}{% for i in g %}{{ i }}{% endfor %}{% for i in g %}{{ i }}{% endfor %}", "{{ numbers | map('abs') is iterable }}", "{% for g in people | groupby('age') %}{{ g.grouper }}:{{ g.list | length }} {% endfor %}", "{% for k, v in people | groupby('age') %}{{ k }}:{{ v | map(attribute='name') | join(',') }} {% endfor %}",
    "{% set args = [1, 2] %}{% macro m(a, b, c=0) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(*args) }}{{ m(*args, c=5) }}{{ m(**{'a': 1, 'b': 2}) }}", "{{ '{}-{}'.format(*[1, 2]) }}", "{{ dict(**{'a': 1}) }}", "{{ m(1, *[2], 3) }}", "{{ f(a=1, 2) }}",
    "{{ [1,2,3] | sum // 2 }}", "{{ n if n is odd else 'even' }}", "{{ (n, x) | join('-') }}", "{{ {'a': {'b': [1, {'c': 2}]}}.a.b[1].c }}", "{{ {'a':{'b':{}}}}}", "{{ {} }}", "{{ {'a': 1}['a'] }}", "{{ 'a' 'b' | upper }}", "{{ n ~ 'a' | upper }}", "{{ -1 | abs }}", "{{ not t | string }}", "{{ 1 if t }}", "{{ 1 .real }}", "{{ a.b.c }}", "{{ ['a', 'b'][0] ~ ('c', 'd')[1] }}", "{{ 'é' < 'z' }}", "{{ text is string and text | length > 5 }}",
    "{% set x = 5 %}{% set y %}{{ x }}{% endset %}{{ y == '5' }}", "{{ loop.index }}", "{% for i in range(3) %}{{ i }}{% if not loop.last %},{% endif %}{% endfor %}", "{% for i in (1, 2, 3) %}{{ i }}{% endfor %}", "{% for i in 1, 2, 3 %}{{ i }}{% endfor %}", "{% for x in [1, 2] %}{{ x }}{% endfor %}{{ x }}",
    "{% if not loop %}y{% endif %}", "{{ messages | map(attribute='role') | unique | list }}", "{{ messages | selectattr('role', 'ne', 'user') | map(attribute='content') | list }}", "{{ (messages | last).content }}", "{{ messages[-1].content[:5] }}", "{{ messages | length > 2 and messages[2].tool_calls[0].arguments.y }}", "{{ messages[2].tool_calls[0].arguments | tojson }}", "{{ messages[2].tool_calls[0] }}",
    "{% set content = messages[1].content %}{% if content is string %}{{ content | replace('<b>', '') }}{% elif content is iterable %}list{% endif %}", "{% if 'tool_calls' in messages[2] %}y{% endif %}{% if 'tool_calls' not in messages[1] %}n{% endif %}", "{{ text.split(' ') | batch(4) | map('join', '_') | join('/') }}", "{{ '</think>' in 'a</think>b' and 'a</think>b'.split('</think>')[-1].lstrip('\\n') }}", "{{ 'a</think>b'.split('</think>')|last|trim }}", "{{ undefined_function() }}", "{{ n.foo.bar }}", "{{ n.foo() }}", "{{ text|attr('nothing') is defined }}", "{{ [1,2]|join(d=',') }}", "{{ 'x'|default }}", "{{ '%s' % text|length }}", "{{ ('%s' % text)|length }}",
    "{% set d2 = dict(a=1) %}{% set d2 = dict(d2, b=2) %}{{ d2 }}{{ d2 | tojson }}", "{{ (1, 2) }}{{ [(1, 2)] }}{{ {'a': (1,)} }}", "{{ d.items() | list }}", "{{ d | items | list }}", "{{ d | dictsort | map('first') | list }}", "{{ none }}{{ [none] }}", "{{ true }}{{ [true] }}", "{{ 1 }}{{ [1.0] }}", "{{ 'a\\nb' }}{{ ['a\\nb'] }}", "{{ missing }}{{ [missing] }}", "{{ (missing,) }}", "{{ missing.a }}", "{{ missing() }}", "{{ missing|upper }}", "{{ missing|length }}", "{{ missing|list }}", "{{ missing + 'a' }}", "{{ 'a' + missing }}", "{{ missing[0] }}", "{{ missing|int }}", "{{ missing|tojson }}", "{{ missing|join }}", "{{ missing|first }}", "{{ missing|default(5) }}", "{{ missing == '' }}", "{{ missing is none }}", "{{ missing or 'x' }}", "{{ missing|trim }}", "{{ missing|replace('a','b') }}", "{{ missing|items|list }}", "{{ -missing }}", "{{ missing * 2 }}", "{{ missing|string|length }}", "{{ '%s' % missing }}", "{{ missing in d }}", "{{ d[missing] }}", "{{ missing|sort }}", "{{ missing|map('upper')|list }}", "{{ missing|sum }}", "{{ missing|capitalize }}", "{{ missing|truncate }}", "{{ missing|wordcount }}", "{{ missing|striptags }}", "{{ missing|urlencode }}", "{{ missing|reverse }}", "{{ missing|indent }}", "{{ missing|round }}", "{{ missing|abs }}", "{{ missing|title }}", "{{ missing|center }}", "{{ missing|last }}", "{{ missing|max }}", "{{ missing|e }}", "{{ missing|pprint }}",
]


def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    # The test sets the clock to 2025-01-04 14:13:20 UTC.
    now = datetime.datetime(2025, 1, 4, 14, 13, 20)
    env.globals["strftime_now"] = lambda format: now.strftime(format)
    return env


class Generation(jinja2.ext.Extension):
    """Marks what training counts: a call block that prints its body."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_print"), [], [], body).set_lineno(line)

    def _print(self, caller):
        return caller()


def main():
    sources = list(STATEMENTS)
    for lines in (FILTERS, TESTS, METHODS, EXPRESSIONS):
        for line in lines:
            sources += ["{{ " + fragment.strip() + " }}" for fragment in line.split("  ") if fragment.strip()]
    cases, seen = [], set()
    for source in sources:
        if source in seen:
            continue
        seen.add(source)
        try:
            answer = environment().from_string(source).render(**VARIABLES)
        except Exception:  # Whatever Python raises, the template has failed.
            answer = None
        if answer is not None and " object at 0x" in answer or answer is not None and "<function" in answer:
            continue  # An address of memory.
        if answer is not None and "bound method" in answer or answer is not None and "built-in method" in answer:
            continue
        cases.append([source, answer])
    json.dump({"variables": json.dumps(VARIABLES), "cases": cases}, sys.stdout, ensure_ascii=False, indent=0)
    print()


main()
